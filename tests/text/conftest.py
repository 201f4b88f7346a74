"""A prepared set small enough to embed in a test."""

import json

import numpy as np
import pytest

from oa_jax.data import store
from oa_jax.data.store import Prepared
from oa_jax.events.log import CONTEXT, TEST, TRAINING, VALIDATION, make_log

WORDS = ("red", "blue", "small", "large", "steel", "paper", "light", "heavy", "soft", "round")


def item_rows(n_items, rng):
    """Item table with everything that may be missing; item 2 says nothing at all."""
    rows = []
    for k in range(sum(n_items)):
        row = {"id": k + 1, "domain": "AB"[int(k >= n_items[0])], "raw": f"B{k:03d}"}
        if k != 1:
            row["title"] = " ".join(rng.choice(WORDS, 4))
        if k % 3 == 0:
            row |= {"brand": "Acme", "price": f"${k}.50", "category": ["Home", "Garden"]}
        rows.append(row)
    return rows


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory):
    """Function (split by roles or not) -> Prepared of 30 users, 20 + 25 items, without files."""

    def make(with_roles=True, seed=0) -> Prepared:
        rng = np.random.default_rng(seed)
        n_items, user, item, role = (20, 25), [], [], []
        for u in range(30):
            count = int(rng.integers(4, 12))
            user += [u] * count
            item += rng.integers(1, 46, count).tolist()
            role += [TRAINING] * (count - 3) + [VALIDATION, CONTEXT, TEST]
        role[: user.count(0)] = [VALIDATION] + [CONTEXT] * (user.count(0) - 2) + [TEST]
        roles = role if with_roles else None
        time = np.arange(len(user))
        log = make_log(np.array(user), np.array(item), time, n_items, "tiny", roles)
        domains = ["Clothing_Shoes_and_Jewelry", "Tools"]
        metadata = {"name": "tiny", "n_items": n_items, "fingerprint": log.fingerprint()}
        metadata["items_digest"] = "0" * 16
        folder = tmp_path_factory.mktemp("prepared")
        raw_users = [f"u{u}" for u in range(30)]
        out = Prepared(log, np.array(role), raw_users, metadata | {"domains": domains}, folder)
        out.__dict__["items"] = item_rows(n_items, rng)
        return out

    return make


@pytest.fixture(scope="session")
def stored(tiny_prepared, tmp_path_factory):
    """(data directory, name) of the tiny set with its files on disk."""
    prepared, data_dir = tiny_prepared(), tmp_path_factory.mktemp("data")
    folder = store.folder(data_dir, "tiny")
    folder.mkdir(parents=True)
    store.write_columns(folder, prepared.log, prepared.role, prepared.raw_users)
    facts = {"items_digest": store.write_items(folder, prepared.items)}
    facts |= {"n_users": prepared.log.n_users, "n_events": len(prepared.log.user)}
    (folder / store.METADATA).write_text(json.dumps(store.FIELDS | prepared.metadata | facts))
    return data_dir, "tiny"

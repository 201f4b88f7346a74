"""Workdirs written in milliseconds: real configuration and metrics, ranks that a test chooses."""

import importlib.util
import pathlib

import numpy as np

from oa_jax.backbones import known
from oa_jax.ranking.metrics import metrics_by_domain
from oa_jax.runs.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
CANDIDATES = {"uni99": 100, "full": 500}


def config_file():
    """The module configs/abxi.py."""
    spec = importlib.util.spec_from_file_location("abxi_file", ROOT / "configs" / "abxi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(gca="none", **overrides):
    """It on the synthetic pair; overrides as in `model__d_embed=16`."""
    config = config_file().get_config(f"pair=synthetic,gca={gca}")
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    config.update_from_flattened_dict({"seeds": 3} | changes)
    return known.resolve(config).to_dict()


def ranks_of(seeds, n_users=40, better=0.0, seed=0):
    """Arrays of ranks.npz: users are easy or hard alike for all runs, `better` lifts every rank, or
    those of a split."""
    users = np.arange(n_users)
    hard_R = np.random.default_rng(7).uniform(0, 1, n_users)
    rng = np.random.default_rng(seed)
    out = {"seed": np.asarray(seeds, np.int32)}
    for split in ("val", "test"):
        out |= {f"{split}/user": users, f"{split}/domain": users % 2}
        for name, n in CANDIDATES.items():
            noise_SxR = rng.uniform(0, 0.3, (len(seeds), n_users))
            lift = better[split] if isinstance(better, dict) else better
            share_SxR = np.clip(0.7 * hard_R**3 + noise_SxR - lift, 0, 0.999)
            out[f"{split}/{name}/rank"] = (1 + share_SxR * (n - 1)).astype(np.int32)
            out[f"{split}/{name}/ties"] = np.zeros((len(seeds), n_users), np.int32)
            out[f"{split}/{name}/n_candidates"] = np.full(n_users, n)
            out[f"{split}/{name}/finite"] = np.ones((len(seeds), n_users), bool)
    return out


def entry_of(ranks, slot, positions, cosines, gated=None):
    """What summary.json says of a seed with these ranks; cosines: (place, domain) -> |cos|; gated:
    the same of the gated update, where it is another; "" where it is not recorded."""
    entry = {"seed": int(ranks["seed"][slot]), "epochs": 4, "best_epoch": 3, "diverged_step": 0}
    for split in ("val", "test"):
        for name in CANDIDATES:
            key = f"{split}/{name}"
            values = metrics_by_domain(
                ranks[f"{key}/rank"][slot],
                ranks[f"{key}/ties"][slot],
                ranks[f"{key}/n_candidates"],
                ranks[f"{split}/domain"],
                0.0,
                name,
            )
            entry |= {f"{split}/{k}": v for k, v in values.items()}
    for place in positions:
        for domain in "AB":
            for when, value in (("init", 0.14), ("best", cosines[place, domain])):
                key = f"{when}/gca/{place}/{domain}"
                entry |= {f"{key}/abs_cos": value, f"{key}/cos": value, f"{key}/gate_mean": 0.5}
                if gated != "":
                    of = value if gated is None else gated
                    entry |= {f"{key}/gated_abs_cos": of, f"{key}/gated_cos": -of}
                entry |= {f"{key}/parallel_share": value, f"{key}/xy_abs_cos": 0.3}
    return entry


def plain_run(
    path,
    gca="none",
    better=0.0,
    seed=0,
    cosine=lambda slot, place, domain: 0.2 + 0.05 * slot,
    n_parameters=1000,
    finished=True,
    commit="c0ffee",
    ranks=None,
    fingerprint="abcdef12",
    gated=None,
    **overrides,
):
    """A workdir at `path`, and its path back."""
    config = config_of(gca, **overrides)
    positions = config["gca"]["positions"]
    seeds = config["first_seed"] + np.arange(config["seeds"])
    ranks = ranks_of(seeds, better=better, seed=seed) if ranks is None else ranks
    path = pathlib.Path(path)
    with Workdir(path) as workdir:
        workdir.claim(config)
        env = {"commit": commit, "packages": {"jax": "0.10"}, "fingerprints": {"data": fingerprint}}
        workdir.write_json("env.json", env)
        entries = []
        for slot in range(len(seeds)):
            cosines = {(p, d): cosine(slot, p, d) for p in positions for d in "AB"}
            entries.append(entry_of(ranks, slot, positions, cosines, gated))
        for epoch in range(5):
            workdir.append_rows([_row(e, epoch, positions) for e in entries])
        if finished:
            workdir.write_npz("ranks.npz", ranks)
            null = 0.1414
            summary = {"label": "x", "n_parameters": n_parameters, "null_abs_cos": null}
            workdir.write_json("summary.json", summary | {"per_seed": entries})
    (path / ".lock").unlink()
    return path


def _row(entry, epoch, positions):
    row = {"epoch": epoch, "seed": entry["seed"], "best_epoch": min(epoch, 3), "diverged_step": 0}
    for domain in "AB":
        final = entry[f"val/{domain}/ndcg@10/uni99"]
        row[f"val/{domain}/ndcg@10/uni99"] = final * epoch / 4
        for place in positions:
            end = entry[f"best/gca/{place}/{domain}/abs_cos"]
            row[f"gca/{place}/{domain}/abs_cos"] = 0.14 + (end - 0.14) * epoch / 4
    return row

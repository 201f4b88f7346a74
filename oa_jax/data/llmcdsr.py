"""Food-Kitchen as the authors of LLMCDSR publish it: single-domain users too, item titles.

`train_overlap`, `train_A`, `train_B`, `valid`, `test` (.txt or .txt.gz): a line per user, a number,
a tab, item ids in order, separated by commas. Ids 0..nA-1 are domain A, nA.. domain B. The files
hold different users: those of valid and test are evaluated on their last item and train nothing.
`items_A.jsonl`, `items_B.jsonl` (or .gz): a line per item; they fix the numbers of items.
`item_title_minilm_A.npy`, `…_B.npy`: (n, E) embeddings of the titles, row i of local id i.
"""

from __future__ import annotations

import pathlib

import numpy as np

from oa_jax.data.log import InteractionLog, make_log
from oa_jax.data.published import find_file, read_text
from oa_jax.data.splits import Split
from oa_jax.errors import UserError

TRAIN = ("train_overlap", "train_A", "train_B")
USERS = {"all": TRAIN, "overlap": TRAIN[:1]}  # whose sequences train


def read(directory, users: str = "all") -> tuple[InteractionLog, Split]:
    """The log, users in the order of the files, and who trains and who is evaluated.

    users: "all", or "overlap" for a training part of the users of both domains alone.
    Times are places in the sequence, as the files have none. Raises UserError naming file and line.
    """
    directory = pathlib.Path(directory)
    n_items = tuple(_count(find_file(directory, f"items_{d}.jsonl")) for d in "AB")
    files = (*USERS[users], "valid", "test")
    parts = [_sequences(find_file(directory, f"{name}.txt"), sum(n_items)) for name in files]
    lengths = [np.array(list(map(len, part))) for part in parts]
    length = np.concatenate(lengths)
    role = np.repeat(["train"] * (len(parts) - 2) + ["val", "test"], list(map(len, parts)))
    item = np.concatenate([np.asarray(row) for part in parts for row in part]) + 1
    user = np.repeat(np.arange(len(length)), length)
    time = np.arange(len(item)) - np.repeat(np.cumsum(length) - length, length)
    log = make_log(user, item, time, n_items, "llmcdsr_food_kitchen")
    train = np.where(role == "train", length, 0)
    places = [np.where(role == which, length - 1, -1) for which in ("val", "test")]
    return log, Split(*(column.astype(np.int32) for column in (train, *places)))


def title_embeddings(directory, n_items: tuple[int, int]) -> np.ndarray:
    """(nA + nB, E) float32, row i is item id i + 1. Raises UserError naming the file."""
    tables = []
    for domain, n in zip("AB", n_items, strict=True):
        path = pathlib.Path(directory) / f"item_title_minilm_{domain}.npy"
        try:
            table = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file: expected embeddings of {n} titles") from None
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path}: not a NumPy array: {error}") from None
        if table.ndim != 2 or len(table) != n or table.dtype.kind != "f":
            raise UserError(f"{path}: found {table.dtype} {table.shape}, expected {n} rows")
        tables.append(table.astype(np.float32))
    if tables[0].shape[1] != tables[1].shape[1]:
        raise UserError(f"{path}: {tables[1].shape[1]} wide: expected {tables[0].shape[1]} as A's")
    return np.concatenate(tables)


def _count(path):
    return len(read_text(path).rstrip("\n").split("\n"))


def _sequences(path, n_items):
    """Item ids, from 0, of every line."""
    rows = []
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n"), 1):
        user, _, items = line.partition("\t")
        try:
            row = [int(text) for text in items.split(",")]
            int(user)
        except ValueError:
            raise UserError(
                f"{path}: line {number}: found {line[:40]!r}, expected a user, a tab, item ids"
            ) from None
        if not 0 <= min(row) <= max(row) < n_items:
            bad = min(row) if min(row) < 0 else max(row)
            raise UserError(
                f"{path}: line {number}: found item {bad}, expected an id in 0..{n_items - 1}"
            )
        rows.append(row)
    return rows

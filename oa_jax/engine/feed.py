"""Training rows read from the files of a prepared set as they are needed, for data larger than the
device.

A task that can be fed has `arrays_of(log, split)`, the arrays of training for the users of that
log, of widths that do not depend on them, and a `batch` that reads its arrays by the given row
numbers only: whatever belongs to a user, its number included, is a column of the arrays. Then the
rows of a batch alone, and their places in it, give the batch that all rows give.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.data import store
from oa_jax.data.sources import DIRECTORY_VARIABLE
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split

CHUNKS_AHEAD = 2  # read while the device works


class Records:
    """Items of the users of a prepared set, by number, read through grain's random access."""

    def __init__(self, directory):
        import grain
        import tensorflow_datasets as tfds

        info = tfds.builder_from_directory(directory).info
        paths = [str(path) for path in info.splits["train"].filepaths]
        self._directory = directory
        self._source = grain.sources.ArrayRecordDataSource(paths)
        # The other features of a record are as costly to decode, and nobody asks for them.
        self._features = tfds.features.FeaturesDict({"item": info.features["item"]})

    def __len__(self):
        return len(self._source)

    def __getitem__(self, users: Sequence[int]) -> list[np.ndarray]:
        """Item ids of each of the given users, oldest first. Raises UserError where that fails."""
        try:
            records = self._source.__getitems__(users)
            return [self._features.deserialize_example_np(record)["item"] for record in records]
        except Exception as error:  # as below
            raise _unreadable(self._directory, error) from None


def open_records(log: InteractionLog, name: str, data_dir: str | None) -> Records:
    """The records of a prepared set on disk.

    data_dir: by default the environment variable OA_DATA_DIR. Nothing is read yet.

    Raises UserError where the set is not prepared there, or from other events than those of
    `log`, and where the libraries or the files are missing.
    """
    data_dir = data_dir or os.environ.get(DIRECTORY_VARIABLE)
    if not data_dir or not store.is_prepared(data_dir, name):
        raise UserError(
            f"--config.data.resident=False: {name} is not prepared below {data_dir}: expected a "
            "set that `python -m oa_jax data prepare NAME` wrote, or resident=True"
        )
    directory = store.folder(data_dir, name)
    found = store.read_metadata(directory)["fingerprint"]
    if found != log.fingerprint():
        raise UserError(
            f"{directory}: fingerprint {found}: expected {log.fingerprint()}, that of the log"
        )
    try:
        return Records(directory)
    except ImportError as error:
        raise UserError(
            f"--config.data.resident=False: {error.name} is not installed: expected the extra "
            "`data` (pip install 'oa-jax[data]')"
        ) from None
    except Exception as error:  # of TFDS and array_record: whatever is wrong in a folder
        raise _unreadable(directory, error) from None


def _unreadable(directory, error):
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{directory}: cannot be read: {reason}: prepare the set again")


@dataclasses.dataclass(frozen=True)
class Feed:
    """Rows of training in chunks of `chunk_steps` batches, for all seeds.

    records: one per user of `task.log`.
    """

    task: object
    records: Records
    chunk_steps: int

    def __post_init__(self):
        if not hasattr(self.task, "arrays_of"):
            raise UserError(
                f"--config.data.resident=False: {type(self.task).__name__} needs all its rows on "
                "the device: expected resident=True"
            )
        if len(self.records) != self.task.n_users:
            raise UserError(
                f"{self.task.log.name}: {len(self.records)} records: expected "
                f"{self.task.n_users}, one per user: prepare the set again"
            )

    def chunks(self, rows_SxNxB: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Arrays of the given users in the order of their steps: leaves (S, chunk, B, ...).

        `rows` are as of `sampling.epoch_rows`; places out of range hold any user's row.
        """
        import grain

        size = self.chunk_steps
        n_chunks = -(-rows_SxNxB.shape[1] // size)
        dataset = grain.MapDataset.range(n_chunks).map(
            lambda k: self.take(rows_SxNxB[:, k * size : (k + 1) * size])
        )
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=CHUNKS_AHEAD)
        return iter(dataset.to_iter_dataset(options))

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of training of the users `rows`, of its shape and the arrays' own axes."""
        users, places = np.unique(np.minimum(rows, self.task.n_users - 1), return_inverse=True)
        arrays = self.task.arrays_of(*self._cut(users))
        return {name: array[places.reshape(rows.shape)] for name, array in arrays.items()}

    def _cut(self, users) -> tuple[InteractionLog, Split]:
        """Log and split of some users, renumbered, out of their records."""
        log, split = self.task.log, self.task.split
        items = self.records[users.tolist()]
        found, expected = np.array([len(i) for i in items]), np.diff(log.offsets)[users]
        if (found != expected).any():
            at = int(np.argmax(found != expected))
            raise UserError(
                f"{log.name}: record {users[at]}: {found[at]} events: expected {expected[at]}: "
                "prepare the set again"
            )
        user = np.repeat(np.arange(len(users), dtype=np.int32), found)
        item = np.concatenate(items).astype(np.int32, copy=False)
        time = np.zeros(len(user), np.int64)  # no array of training depends on it
        cut = Split(*(getattr(split, f.name)[users] for f in dataclasses.fields(Split)))
        return InteractionLog(user, item, time, log.n_items, log.name), cut

    @functools.cached_property
    def row(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of one user's row."""
        arrays = self.take(np.zeros((), int))
        return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in arrays.items()}


def places(rows_B: jax.Array, n_users: int) -> jax.Array:
    """Row numbers of a batch within its own rows; a filler stays out of range of everything."""
    return jnp.where(rows_B < n_users, jnp.arange(len(rows_B)), max(n_users, len(rows_B)))

"""Training rows read from the files of a prepared set as they are needed, for data larger than the
device.

The files hold a record per user; a task says which users' records make which of its rows
(`row_users`, `arrays_of` of `nn.task.Task`), and which rows its batches read (`epoch_rows`). The
rows of a batch alone, and their places in it, give the batch that all rows give. Lists (see
`events.rows`) come with their batch: those of its rows one after the other, in room for any batch.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.data import store
from oa_jax.data.sources import DIRECTORY_VARIABLE
from oa_jax.errors import UserError, needs
from oa_jax.events.log import InteractionLog
from oa_jax.events.rows import Ragged
from oa_jax.events.split import Split
from oa_jax.nn.task import Task

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
        with needs("data", "--config.data.resident=False"):
            return Records(directory)
    except UserError:
        raise
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

    task: Task
    records: Records
    chunk_steps: int

    def __post_init__(self):
        n_users = self.task.log.n_users
        if len(self.records) != n_users:
            raise UserError(
                f"{self.task.log.name}: {len(self.records)} records: expected {n_users}, one per "
                "user: prepare the set again"
            )

    def chunks(self, rows_SxTxN: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Arrays of the given rows in the order of their steps: leaves (S, chunk, ...), see `take`.

        rows: of every batch of an epoch, as of `task.epoch_rows`.
        """
        import grain

        size = self.chunk_steps
        n_chunks = -(-rows_SxTxN.shape[1] // size)
        dataset = grain.MapDataset.range(n_chunks).map(
            lambda k: self.take(rows_SxTxN[:, k * size : (k + 1) * size])
        )
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=CHUNKS_AHEAD)
        return iter(dataset.to_iter_dataset(options))

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of training of the rows (..., N) of batches: leaves (..., N, ...), lists (..., W).

        Numbers out of range hold any row's values, and empty lists.
        """
        known, places = np.unique(np.minimum(rows, self.task.n_users - 1), return_inverse=True)
        arrays = self.task.arrays_of(*self._cut(known), known)
        lists = {name: arrays.pop(name) for name in self.task.list_sizes}
        out = {name: array[places.reshape(rows.shape)] for name, array in arrays.items()}
        row = np.where(rows < self.task.n_users, places.reshape(rows.shape), len(known))
        for name, values in lists.items():
            of_rows = Ragged(values, np.append(arrays[f"n_{name}"], 0))[row.ravel()]
            size, room = of_rows.size.reshape(rows.shape), self.task.list_room(name)
            if size.sum(-1).max() > room:
                raise ValueError(f"lists of {size.sum(-1).max()} entries: expected at most {room}")
            joined = of_rows.blocks(rows.shape[-1], room)[1][:, :room]
            out[name] = joined.reshape(*rows.shape[:-1], room)
            out[f"first_{name}"] = (np.cumsum(size, -1) - size).astype(np.int32)
            out[f"n_{name}"] = size.astype(np.int32)
        return out

    def _cut(self, rows) -> tuple[InteractionLog, Split]:
        """Log and split of the users of some rows, a user for each row, out of their records."""
        log, of_row = self.task.log, self.task.row_users[rows]
        users, user_of_row = np.unique(of_row, return_inverse=True)
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
        read = InteractionLog(user, item, time, log.n_items, log.name)
        return read.take(user_of_row), self.task.split.take(of_row)

    def shapes(self, n_seeds: int) -> tuple[jax.ShapeDtypeStruct, dict[str, jax.ShapeDtypeStruct]]:
        """Shapes of a whole chunk: its row numbers, and `chunks`."""
        task, rows = self.task, np.zeros(1, int)
        steps = n_seeds, min(self.chunk_steps, task.n_steps)
        numbers = jax.ShapeDtypeStruct((*steps, task.batch_size + task.n_support), jnp.int32)

        def of_batch(name, array):
            length = array.shape[0] if name in task.list_sizes else numbers.shape[-1]
            return jax.ShapeDtypeStruct((*steps, length, *array.shape[1:]), array.dtype)

        return numbers, {name: of_batch(name, array) for name, array in self.take(rows).items()}


def places(rows_N: jax.Array, n_users: int) -> jax.Array:
    """Row numbers of a batch within its own rows; a filler stays out of range of everything."""
    return jnp.where(rows_N < n_users, jnp.arange(len(rows_N)), max(n_users, len(rows_N)))

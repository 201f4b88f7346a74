"""The official PyTorch code of ABXI beside ours: the same batches, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.bench.training import Training
from oa_jax.errors import UserError
from oa_jax.tasks.sampling import epoch_rows

WORKER = pathlib.Path(__file__).with_name("official_abxi.py")
CHECKOUT = ("trainer.py", "models/ABXI.py")


class Official:
    """A process with the official model and optimizer at the sizes of `training`, which takes its
    steps when it is asked to. Use as a context. Raises UserError where there is no such code, or
    it fails.

    checkout: folder of DiMarzioBian/ABXI.  python: an interpreter with PyTorch and tqdm.
    """

    def __init__(self, training: Training, checkout: str, python: str):
        self.training, self.python = training, python
        self.checkout = pathlib.Path(checkout).resolve()
        train = training.experiment.config["train"]
        if training.experiment.config["backbone"] != "abxi" or train["negatives"] != "per_position":
            raise UserError("--official: expected ABXI with train.negatives=per_position")
        for name in CHECKOUT:
            if not (self.checkout / name).is_file():
                raise UserError(f"--official={checkout}: no {name}: expected a checkout of ABXI")

    def __enter__(self) -> Official:
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._errors = stack.enter_context((folder / "errors.txt").open("w+"))
            np.savez(folder / "batches.npz", **batches_of(self.training))
            command = [self.python, WORKER, self.checkout, folder / "batches.npz"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
            try:
                self._process = subprocess.Popen(command, bufsize=0, **pipes)
            except OSError as error:
                raise UserError(f"--official_python={self.python}: {error.strerror}") from None
            stack.enter_context(self._process)
            stack.callback(self._process.kill)
            self.found = self._answer()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._open.close()

    def steps(self) -> float:
        """Seconds of a step on each of the batches."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer
            self._process.stdin.write(b"\n")
        answer = self._answer()
        self.found["peak_bytes"] = answer["peak_bytes"]
        return answer["seconds"]

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or ["it ended without a word"]
        raise UserError(f"--official: the official code failed: {said[-1]}")


def batches_of(training: Training) -> dict[str, np.ndarray]:
    """The batches that `training` measures, of its first seed, as the official code takes them:
    seq_x, seq_a, seq_b, gt (B, L), negatives (B, L, 2n) by number, and `sizes`."""
    experiment, task = training.experiment, training.experiment.task
    config, seed = experiment.config, jnp.int32(experiment.seeds[0])
    rows_NxB = epoch_rows(seed, 0, task.n_users, task.batch_size)[: training.n_steps]
    arrays, capacity = training.arrays["train"], training.capacity
    draw = jax.jit(lambda rows_B, step: task.batch(arrays, rows_B, seed, step, capacity))
    out = {}
    for i, rows_B in enumerate(rows_NxB):
        batch = jax.device_get(draw(rows_B, i))
        for name in ("seq_x", "seq_a", "seq_b", "gt"):
            out[f"{name}/{i}"] = batch[name].astype(np.int64)
        places = np.concatenate([batch["at_A"], batch["at_B"]])
        negatives = np.ones((batch["gt"].size, batch["negatives"].shape[1]), np.int64)
        used = places < len(negatives)
        negatives[places[used]] = batch["negatives"][used]
        out[f"negatives/{i}"] = negatives.reshape(*batch["gt"].shape, -1)
    model, (n_a, n_b) = config["model"], experiment.log.n_items
    args = {"n_item": n_a + n_b, "n_item_a": n_a, "bs": task.batch_size, "n_neg": task.n_negatives}
    args |= {"len_trim": model["length"], "n_head": model["heads"], "d_embed": model["d_embed"]}
    args |= {"temp": model["temperature"], "dropout": model["dropout"]}
    args |= {"rd": model["rank_domain"], "ri": model["rank_invariant"]}
    sizes = {"n_batches": training.n_steps, "args": args}
    sizes |= {name: config["train"][name] for name in ("learning_rate", "weight_decay")}
    return out | {"sizes": np.array(json.dumps(sizes))}

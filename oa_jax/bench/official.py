"""An official PyTorch code beside ours: the same batches, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.llm4cdsr import arrays as llm4cdsr_arrays
from oa_jax.bench.training import Training
from oa_jax.config import value_of
from oa_jax.errors import UserError
from oa_jax.nn.draws import epoch_rows

WORKER = pathlib.Path(__file__).with_name("official_worker.py")


class Official:
    """A process with the official model and optimizer at the sizes of `training`, which takes its
    steps when it is asked to. Use as a context. Raises UserError where there is no such code, or
    it fails.

    checkout: folder of DiMarzioBian/ABXI, or of Applied-Machine-Learning-Lab/LLM4CDSR-pytorch.
    python: an interpreter with PyTorch, and tqdm for ABXI.
    """

    def __init__(self, training: Training, checkout: str, python: str):
        self.training, self.python = training, python
        self.checkout = pathlib.Path(checkout).resolve()
        config = training.experiment.config
        self.name = config.backbone
        if self.name not in CODES:
            raise UserError(f"--official: {self.name} has none: expected {' or '.join(CODES)}")
        files, needed, _ = CODES[self.name]
        for (group, field), value in needed.items():
            if value_of(config, f"{group}.{field}") != value:
                raise UserError(f"--official: expected --config.{group}.{field}={value}, as it has")
        for file in files:
            if not (self.checkout / file).is_file():
                raise UserError(
                    f"--official={checkout}: no {file}: expected a checkout of its code"
                )

    def __enter__(self) -> Official:
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._errors = stack.enter_context((folder / "errors.txt").open("w+"))
            np.savez(folder / "batches.npz", **inputs_of(self.training))
            command = [self.python, WORKER, self.name, self.checkout, folder / "batches.npz"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
            try:
                self._process = subprocess.Popen(command, bufsize=0, **pipes)
            except OSError as error:
                raise UserError(f"--official_python={self.python}: {error.strerror}") from None
            stack.enter_context(self._process)
            stack.callback(self._process.kill)
            self.found = self._answer()
            self.steps()  # the first steps are slower, as ours are
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


def of_abxi(training: Training):
    """(sizes, arrays): seq_x, seq_a, seq_b, gt (B, L), negatives (B, L, 2n) of each batch."""
    task, config, out = training.task, training.experiment.config, {}
    for i, (_, batch) in enumerate(_batches(training)):
        out |= {f"{name}/{i}": batch[name] for name in ("seq_x", "seq_a", "seq_b", "gt")}
        at = np.concatenate([batch["at_A"], batch["at_B"]])
        out[f"negatives/{i}"] = _unpacked(batch["negatives"], at, batch["gt"].shape, empty=1)
    model, (n_a, n_b) = config.model, task.log.n_items
    args = {"n_item": n_a + n_b, "n_item_a": n_a, "bs": task.batch_size, "n_neg": task.n_negatives}
    args |= {"len_trim": model.length, "n_head": model.heads, "d_embed": model.d_embed}
    args |= {"temp": model.temperature, "dropout": model.dropout}
    args |= {"rd": model.rank_domain, "ri": model.rank_invariant}
    return {"args": args, "weight_decay": config.train.weight_decay}, out


def of_llm4cdsr(training: Training):
    """(sizes, arrays): the inputs of its training rows (specs llm4cdsr §3), and its tables."""
    experiment, model = training.experiment, training.experiment.config.model
    task, out = training.task, {}
    whole = llm4cdsr_arrays.training_arrays(task.log, task.split, task.length)
    for i, (rows_B, batch) in enumerate(_batches(training)):
        shape = batch["seq"].shape
        one = {"seq": batch["seq"], "neg": np.zeros(shape, np.int64), "user_id": batch["profile"]}
        for name, empty in (("pos", 0), ("domain_mask", -1)):
            values = whole[name][np.minimum(rows_B, task.n_users - 1)]
            one[name] = np.where(batch["real"][:, None], values, empty)
        one |= {"target_domain": np.zeros(len(rows_B)), "positions": _positions(batch["seq"])}
        for d in llm4cdsr_arrays.DOMAINS:
            at, pair = batch[f"at_{d}"], batch[f"pair_{d}"]
            joint = _unpacked(batch[f"neg_x_{d}"], at, shape)
            row, column = np.nonzero(pair >= 0)
            one["neg"][row, pair[row, column]] = joint[row, column]
            one |= {f"seq{d}": batch[f"seq_{d}"], f"pos{d}": batch[f"pos_{d}"]}
            one[f"neg{d}"] = _unpacked(batch[f"neg_{d}"], at, shape)
            one[f"positions{d}"] = _positions(batch[f"seq_{d}"])
            one[f"reg_{d}"] = batch[f"reg_{d}"][:, None]
        out |= {f"{name}/{i}": values for name, values in one.items()}
    tables = jax.device_get(experiment.tables)
    names = {"items_all": tables.items[1:], "profiles": tables.users}
    names |= {f"items_{d}_pca128": getattr(tables, f"local_{d}")[1:] for d in "AB"}
    out |= {f"table/{name}": np.asarray(table) for name, table in names.items()}
    args = {
        "dataset": "set",
        "llm_emb_file": "items",
        "user_emb_file": "profiles",
        "trm_num": model.blocks,
    }
    args |= {"hidden_size": model.d_embed, "max_len": model.length}
    args |= {"num_heads": model.heads, "dropout_rate": model.dropout}
    args |= {"global_emb": True, "local_emb": True, "freeze_emb": True}
    args |= {name: getattr(model, name) for name in ("alpha", "beta", "tau", "tau_reg")}
    return {"args": args, "n_items": task.log.n_items, "n_users": len(tables.users)}, out


# Backbone -> files by which its code is known, what only it does, its inputs.
CODES = {
    "abxi": (
        ("trainer.py", "models/ABXI.py"),
        {("train", "negatives"): "per_position"},
        of_abxi,
    ),
    "llm4cdsr": (
        ("models/LLMCDSR.py", "models/SASRec.py"),
        {("model", name): True for name in ("global_llm", "local_llm", "freeze")},
        of_llm4cdsr,
    ),
}


def inputs_of(training: Training) -> dict[str, np.ndarray]:
    """The batches that `training` measures, of its first seed, as the official code takes them."""
    sizes, arrays = CODES[training.experiment.config.backbone][-1](training)
    sizes["n_batches"] = training.n_steps
    sizes["learning_rate"] = training.experiment.config.train.learning_rate
    whole = {k: a.astype(np.int64) if a.dtype.kind in "iu" else a for k, a in arrays.items()}
    return whole | {"sizes": np.array(json.dumps(sizes))}


def _batches(training: Training):
    """[(rows (B,), batch)] on the host."""
    task, seed = training.task, jnp.int32(training.experiment.seeds[0])
    rows_NxB = epoch_rows(seed, 0, task.n_users, task.batch_size)[: training.n_steps]
    arrays, capacity = training.arrays["train"], training.capacity
    draw = jax.jit(lambda rows_B, step: task.batch(arrays, rows_B, seed, step, capacity))
    return [(np.asarray(rows), jax.device_get(draw(rows, i))) for i, rows in enumerate(rows_NxB)]


def _unpacked(values_P, at_P, shape, empty=0):
    """(B, L, …): values at their places; at_P names places outside for slots without one."""
    grid = np.full((shape[0] * shape[1], *values_P.shape[1:]), empty, values_P.dtype)
    used = at_P < len(grid)
    grid[at_P[used]] = values_P[used]
    return grid.reshape(*shape, *values_P.shape[1:])


def _positions(seq_BxL):
    real = seq_BxL != 0
    return real.cumsum(1) * real

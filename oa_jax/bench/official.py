"""An official PyTorch code beside ours: the same batches, in a process of its own.

A backbone whose code can be timed has `official_step.py` in its folder, with
    FILES    files by which a checkout of the code is known
    NEEDED   {field: the only value that the code can do}
    inputs   (config, task, tables, batches) -> (sizes, arrays), what its model is made and fed with
and `official_torch.py` for the other process, see `official_worker.py`.
"""

import contextlib
import json
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones import known
from oa_jax.bench.cases import Cases
from oa_jax.configuration import value_of
from oa_jax.engine import compilation
from oa_jax.errors import UserError
from oa_jax.nn.draws import epoch_rows

WORKER = pathlib.Path(__file__).with_name("official_worker.py")


class Official:
    """A context with a process of the official model and optimizer at the sizes of `cases`, which
    takes its steps when asked to. Raises UserError where there is no such code, or it fails.

    checkout: folder of the official code.  python: an interpreter with PyTorch, and tqdm for ABXI.
    """

    def __init__(self, cases: Cases, checkout: str, python: str):
        self.cases, self.python = cases, python
        self.checkout = pathlib.Path(checkout).resolve()
        config, codes = cases.experiment.config, known.having("official_step")
        if config.backbone not in codes:
            raise UserError(
                f"--official: {config.backbone} has none: expected {' or '.join(codes)}"
            )
        self.code = codes[config.backbone]
        for field, value in self.code.NEEDED.items():
            if value_of(config, field) != value:
                raise UserError(f"--official: expected --config.{field}={value}, as it has")
        for file in self.code.FILES:
            if not (self.checkout / file).is_file():
                raise UserError(
                    f"--official={checkout}: no {file}: expected a checkout of its code"
                )

    def __enter__(self) -> "Official":
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._errors = stack.enter_context((folder / "errors.txt").open("w+"))
            np.savez(folder / "batches.npz", **inputs_of(self.cases))
            model = pathlib.Path(self.code.__file__).with_name("official_torch.py")
            command = [self.python, WORKER, model, self.checkout, folder / "batches.npz"]
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


def inputs_of(cases: Cases) -> dict[str, np.ndarray]:
    """The batches that `cases` measures, of its first seed, as the official code takes them:
    `sizes`, a line of JSON, and arrays, those of batch i as NAME/i."""
    experiment, task = cases.experiment, cases.task
    config, seed = experiment.config, jnp.int32(experiment.seeds[0])
    arrays, capacity = cases.arrays["train"], cases.capacity
    draw = jax.jit(lambda a, rows_B, step: task.batch(a, rows_B, seed, step, capacity))
    rows_NxB = epoch_rows(seed, 0, task.n_users, task.batch_size)[: cases.n_steps]
    lowered = draw.lower(arrays, rows_NxB[0], jnp.int32(0))
    draw = compilation.compiled(lowered, jax.default_backend(), quick=False)
    batches = [
        (np.asarray(rows), jax.device_get(draw(arrays, rows, jnp.int32(i))))
        for i, rows in enumerate(rows_NxB)
    ]
    code = known.having("official_step")[config.backbone]
    sizes, out = code.inputs(config, task, jax.device_get(experiment.tables), batches)
    sizes |= {"n_batches": len(batches), "learning_rate": config.train.learning_rate}
    whole = {k: a.astype(np.int64) if a.dtype.kind in "iu" else a for k, a in out.items()}
    return whole | {"sizes": np.array(json.dumps(sizes))}

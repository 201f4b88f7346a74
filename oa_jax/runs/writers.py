"""Where the rows of metrics.jsonl go besides: TensorBoard, MLflow, Weights & Biases.

A writer is a class with `row(row)`, a row of metrics.jsonl with epoch, seed, and numbers by name,
and `close()`; its name stands in `WRITERS`.
"""

import importlib
import os
import secrets
from collections.abc import Mapping
from typing import Any

from oa_jax import processes
from oa_jax.configuration import Config, fields_of, value_of
from oa_jax.errors import needs
from oa_jax.runs.workdir import Workdir


def opened(config: Config, workdir: Workdir) -> list[Any]:
    """The writers of `train.writers`, in the process that writes files.

    Raises UserError where the package of one is not installed.
    """
    names = config.train.writers if processes.is_first() else ()
    return [WRITERS[name](config, workdir) for name in names]


def _package(name, extra):
    with needs(extra, f"train.writers={extra}"):
        return importlib.import_module(name)


def _numbers(row):
    """{seedS/name: number} of a row."""
    return {f"seed{row['seed']}/{k}": v for k, v in row.items() if k not in ("seed", "epoch")}


def _flat(config):
    """Dotted fields as MLflow and W&B show them."""
    return {name: value_of(config, name) for name, _ in fields_of(type(config))}


class TensorBoard:
    """Event files in WORKDIR/tensorboard."""

    def __init__(self, config: Config, workdir: Workdir):
        board = _package("tensorboardX", "tensorboard")
        self._board = board.SummaryWriter(str(workdir.path / "tensorboard"))

    def row(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._board.add_scalar(name, value, row["epoch"])
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says; by default in WORKDIR/mlruns.

    A workdir that goes on goes on with its run there. Names have `_at_` for @, which it refuses.
    """

    def __init__(self, config: Config, workdir: Workdir):
        mlflow = _package("mlflow", "mlflow")
        path = workdir.path.absolute()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # of recent versions
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"file:{path / 'mlruns'}"
        self._client = mlflow.MlflowClient(uri)
        kept = path / "mlflow.run"
        if kept.exists():
            self._run = kept.read_text()
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "oa-jax")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=path.name).info.run_id
        for field, value in _flat(config).items():
            self._client.log_param(self._run, field, value)
        kept.write_text(self._run)

    def row(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            name = name.replace("@", "_at_").replace("|", "_")
            self._client.log_metric(self._run, name, float(value), step=row["epoch"])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WandB:
    """A run of Weights & Biases, offline unless WANDB_MODE says else: `wandb sync` sends it. A
    workdir that goes on goes on with its run there; several runs of a process stay apart."""

    def __init__(self, config: Config, workdir: Workdir):
        wandb = _package("wandb", "wandb")
        os.environ.setdefault("WANDB_MODE", "offline")
        path = workdir.path.absolute()
        kept = path / "wandb.run"
        if not kept.exists():
            kept.write_text(secrets.token_hex(8))
        self._run = wandb.init(
            project="oa-jax",
            name=path.name,
            id=kept.read_text(),
            resume="allow",
            reinit="create_new",
            dir=str(path),
            config=_flat(config),
        )

    def row(self, row: Mapping[str, Any]) -> None:
        self._run.log({"epoch": row["epoch"], **_numbers(row)})

    def close(self) -> None:
        self._run.finish()


WRITERS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}

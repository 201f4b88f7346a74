"""Rows go to TensorBoard, MLflow and W&B as they go to metrics.jsonl."""

import json
import sys

import pytest
import toy

from oa_jax.errors import UserError
from oa_jax.runs import loop, writers
from oa_jax.runs.workdir import Workdir

RUN = {"seeds": 2, "train__max_epochs": 2}


def train(path, *names):
    with Workdir(path) as workdir:
        experiment = toy.toy_experiment(**RUN, train__writers=names)
        loop.train(experiment, workdir, lambda line: None)
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_mlflow_has_every_number_of_every_row(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store = f"file:{tmp_path / 'store'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    rows = train(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(store)
    (experiment,) = [e for e in client.search_experiments() if e.name == "oa-jax"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["train.max_epochs"] == "2"
    for seed in (0, 1):
        history = client.get_metric_history(run.info.run_id, f"seed{seed}/val/A/ndcg_at_10/uni10")
        found = [(metric.step, metric.value) for metric in history]
        name = "val/A/ndcg@10/uni10"
        assert found == [(row["epoch"], row[name]) for row in rows if row["seed"] == seed]
    train(tmp_path / "run", "mlflow")  # goes on, or has nothing to do, in the same run
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = toy.toy_experiment(train__writers=("wandb",)).config
    with pytest.raises(UserError, match="train.writers=wandb: wandb is not installed"):
        writers.opened(config, Workdir(tmp_path))


def test_wandb_gets_a_row_at_a_time(tmp_path, monkeypatch):
    """Against a stand-in of the three calls that are made: the package is large."""

    class Module:
        logged, finished = [], 0

        @classmethod
        def init(cls, **about):
            cls.about = about
            return cls

        @classmethod
        def log(cls, row):
            cls.logged.append(row)

        @classmethod
        def finish(cls):
            cls.finished += 1

    monkeypatch.setitem(sys.modules, "wandb", Module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    rows = train(tmp_path / "run", "wandb")
    assert Module.about["name"] == "run" and Module.about["config"]["train.batch_size"] == 16
    assert len(Module.logged) == len(rows) == 6 and Module.finished == 1
    id = Module.about["id"]
    train(tmp_path / "run", "wandb")
    assert Module.about["id"] == id and Module.about["reinit"] == "create_new"
    train(tmp_path / "other" / "run", "wandb")  # of the same name
    assert Module.about["id"] != id
    last = Module.logged[5]
    assert (last["epoch"], last["seed1/best_epoch"]) == (2, rows[-1]["best_epoch"])


def test_older_configurations_with_tensorboard_are_read():
    values = toy.abxi_config().to_dict()
    del values["train"]["writers"]
    for before, now in ((True, ("tensorboard",)), (False, ())):
        values["train"]["tensorboard"] = before
        assert writers_of(values) == now


def writers_of(values):
    from oa_jax.backbones import known

    return known.resolve(values).train.writers

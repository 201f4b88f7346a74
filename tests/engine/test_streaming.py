"""Training from files is training on the device: states, ranks, metrics.jsonl."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import toy

from oa_jax.data import store
from oa_jax.data.prepare import OaPairs
from oa_jax.data.store import Built
from oa_jax.engine import program as engine_lib
from oa_jax.engine import streaming
from oa_jax.engine.feed import Feed, open_records
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.runs import loop, summary
from oa_jax.runs.workdir import Workdir

CAPACITY = (128, 128)


class InMemory(list):
    """The items of every user, in the place of the files."""

    def __getitem__(self, users):
        return [super(InMemory, self).__getitem__(user) for user in users]


def streamed(experiment, chunk_steps):
    """The same experiment with its rows from a feed."""
    config = experiment.config.replace(data={"resident": False})
    log = experiment.data.log
    records = InMemory(np.split(log.item, log.offsets[1:-1]))
    feed = Feed(experiment.data.task, records, chunk_steps)
    settings = experiment.engine.settings
    engine = streaming.StreamingEngine(settings, experiment.engine.axis, feed)
    return dataclasses.replace(experiment, config=config, engine=engine)


def train(experiment, epochs=2):
    """States and reports after some epochs in which the middle seed is done from the first on."""
    engine, arrays, reports = experiment.engine, experiment.train_arrays(), []
    states = engine.create(experiment.seeds, experiment.hparams())
    for epoch in range(epochs):
        states, report = engine.epoch(states, arrays, CAPACITY)
        reports.append(jax.device_get(report))
        if not epoch:
            states = states.replace(done=states.done.at[1].set(True))
    return states, reports


@pytest.fixture(scope="module")
def resident():
    """An experiment of three seeds with its states and reports."""
    experiment = toy.toy_experiment(seed_axis="vmap")
    return experiment, *train(experiment)


@pytest.fixture(scope="module")
def twin(resident):
    """The same with its rows in chunks of 3 steps and of 1."""
    return streamed(resident[0], 3)


def test_an_epoch_by_chunks_is_an_epoch_bitwise(resident, twin, bitwise):
    _, states, reports = resident
    found, found_reports = train(twin)
    assert bitwise(found, states) and bitwise(found_reports[0], reports[0])
    assert bitwise(*(engine_lib.take_seeds(r[1], [0, 2]) for r in (found_reports, reports)))
    # Twins: the seed that is done stands still, and moved before that.
    assert found.epoch.tolist() == [2, 1, 2]
    assert not np.array_equal(*(r["train"]["loss"] for r in reports))
    # The shapes of a chunk are known without running it: nothing is compiled anew.
    engine, before = twin.engine, len(twin.engine._programs)
    engine.compiled("epoch", jax.eval_shape(lambda: found), {}, CAPACITY)
    assert len(engine._programs) == before
    (one, other), tables = engine.on_device({}, 3)
    assert one == other and one[1]["gt"].shape == (3, 3, 16, 12) and tables is None


def test_slices_of_users_are_ranked_as_all_at_once(resident, twin, bitwise, monkeypatch):
    monkeypatch.setattr(streaming, "EVALUATION_BLOCKS", 1)
    experiment, states, _ = resident
    protocols = ("candidates", "full")
    rows = experiment.evaluation.padded(experiment.evaluation.rows["test"])
    assert len(rows["real"]) > experiment.config.evaluate.block_users
    pairs = [e.engine.final(states.params, rows, protocols)[0] for e in (experiment, twin)]
    assert bitwise(*pairs)
    assert bitwise(*(e.engine.assess(states, e.train_arrays()) for e in (experiment, twin)))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["llm4cdsr", "cdsrnp"])
def test_the_other_backbones_train_from_files_too(backbone, bitwise):
    """With frozen tables, with a support set drawn beside each batch."""
    experiment = toy.small_experiment(backbone, "pair=synthetic,gca=none", seeds=1)
    twin, found, task = streamed(experiment, 3), [], experiment.data.task
    assert task.n_steps > 3 and (task.n_support > 0) == (backbone == "cdsrnp")
    for one in (experiment, twin):
        states = one.engine.create(one.seeds, one.hparams())
        arrays = one.engine.keep(one.train_arrays(), len(one.seeds))
        capacity = one.engine.capacity(one.seeds, 0)
        found.append(jax.device_get(one.engine.epoch(states, arrays, capacity)))
    assert "train" in experiment.train_arrays() and "train" not in arrays
    (states, report), (fed_states, fed_report) = found
    losses, fed_losses = report.pop("train"), fed_report.pop("train")
    assert bitwise(fed_report, report)
    # Two programs may round the last bits of losses and gradients differently, and Adam makes steps
    # out of the noise that is the gradient of a key bias (Q22): so the averages of gradients are
    # compared.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), fed_losses, losses)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(close, fed_states.moments.mu, states.moments.mu)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """(log, data directory, name) of a prepared set."""
    log, data_dir, name = (
        toy.toy_experiment().data.log,
        tmp_path_factory.mktemp("data"),
        "beauty_elec",
    )
    role = splits.roles_of(log, splits.leave_one_out(log))
    raw_users = list(map(str, range(log.n_users)))
    built = Built(log.user, log.item, log.time, role, log.n_items, raw_users, [], "order")
    tfds.disable_progress_bar()
    OaPairs(built=built, config=name, data_dir=str(data_dir)).download_and_prepare()
    folder = store.folder(data_dir, name)
    store.write_columns(folder, log, role, raw_users)
    facts = {"name": name, "n_items": log.n_items, "fingerprint": log.fingerprint()}
    facts = store.FIELDS | facts | {"n_users": log.n_users, "n_events": len(log.user)}
    (folder / store.METADATA).write_text(json.dumps(facts))
    return log, data_dir, name


def test_a_run_from_files_writes_what_a_resident_run_writes(
    on_disk, resident, twin, bitwise, tmp_path
):
    """From the configuration to metrics.jsonl and the final ranks."""
    _, data_dir, name = on_disk
    data = {"data__name": name, "data__dir": str(data_dir), "data__chunk_steps": 3}
    rows, ranks = [], []
    for is_resident, compiled in ((True, resident[0].engine), (False, twin.engine)):
        experiment = toy.toy_experiment(data__resident=is_resident, seed_axis="vmap", **data)
        assert type(experiment.engine) is type(compiled)
        experiment.engine._programs = compiled._programs  # of equal arguments: compiled once
        with Workdir(tmp_path / str(is_resident)) as workdir:
            states, _ = loop.train(experiment, workdir, lambda line: None)
        rows.append((tmp_path / str(is_resident) / "metrics.jsonl").read_text())
        ranks.append(summary.rank_all(experiment, states.best_params))
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 3 * 4
    assert bitwise(*ranks)


def test_a_set_that_is_not_there_or_another_is_one_line(on_disk, random_log, monkeypatch):
    log, data_dir, name = on_disk
    monkeypatch.setenv("OA_DATA_DIR", str(data_dir))
    assert len(open_records(log, name, None)) == log.n_users
    with pytest.raises(UserError, match="^--config.data.resident=False: synthetic is not prepared"):
        open_records(log, "synthetic", str(data_dir))
    with pytest.raises(UserError, match="expected .*, that of the log"):
        open_records(random_log(0), name, str(data_dir))
    monkeypatch.delenv("OA_DATA_DIR")
    with pytest.raises(UserError, match="is not prepared below None"):
        open_records(log, name, None)


def test_damaged_files_are_one_line(on_disk, tmp_path):
    log, data_dir, name = on_disk
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    folder = store.folder(tmp_path, name)
    records = next(folder.glob("*.array_record*"))
    whole = records.read_bytes()
    middle = len(whole) // 2  # behind the file's head, which is read on opening
    records.write_bytes(whole[: middle - 500] + bytes(1000) + whole[middle + 500 :])
    with pytest.raises(UserError, match="cannot be read: .*prepare the set again"):
        open_records(log, name, str(tmp_path))[list(range(log.n_users))]
    records.write_bytes(whole[:middle])
    with pytest.raises(UserError, match="prepare the set again"):
        open_records(log, name, str(tmp_path))[[0]]
    (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read: .*prepare the set again"):
        open_records(log, name, str(tmp_path))

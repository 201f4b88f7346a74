"""A run of the benchmark on the toy backbone of the training tests."""

import dataclasses

import jax
import pytest
import toy

from oa_jax.backbones import known
from oa_jax.bench import rounds, tables, work
from oa_jax.bench.cases import Cases
from oa_jax.bench.measure import measure, prepare
from oa_jax.errors import UserError


@pytest.fixture(scope="module")
def found():
    config = known.resolve(toy.abxi_config(train__quick_compile=True))
    configs = {axis: config.replace(seed_axis=axis) for axis in ("vmap", "map")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "WIDTH", {"cpu": 64})
        patch.setattr(rounds, "COPIED", {"cpu": 2**16})
        measured = measure(configs, lambda c: Cases(toy.with_toy(c), 2, 20), [1, 3], 2, print)
    return measured | {"vary": "seed_axis=vmap,map"}


def test_every_variant_and_number_of_seeds(found):
    labels = [(row["variant"], row["seeds"]) for row in found["seeds"]]
    assert labels == [("vmap", 1), ("vmap", 3), ("map", 1), ("map", 3)]
    for row in found["seeds"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["program_bytes"] > 0
        # The process's: nobody knows what of it is a later variant's.
        assert row["peak_bytes"] is None if row["variant"] == "map" else row["peak_bytes"] > 1e6
        assert row["compile_seconds"] > 0 and row["roofline_share"] > 0
        per_step = sum(row["seconds"]) / 2 / found["steps"]
        assert row["steps_per_second"] == pytest.approx(1 / per_step)
        assert row["sequences_per_second"] == pytest.approx(16 / per_step)
    assert found["seeds"][1]["program_bytes"] > found["seeds"][0]["program_bytes"]
    assert found["checkpoint"]["seeds"] == 3 and found["checkpoint"]["bytes"] > 1e3
    assert set(found["evaluation"]) == {"uni10", "full"} and found["evaluated_users"] == 20
    assert found["seeds"][0]["step_flops"] > 1e5


def test_a_step_is_counted_with_its_support_set(monkeypatch):
    cases, rows = Cases(toy.small_experiment("cdsrnp", "pair=synthetic,runlocal"), 1, 5), []
    monkeypatch.setattr(work, "count", lambda step, state, rows_B: rows.append(rows_B.size))
    _ = cases.work
    assert rows == [cases.task.batch_size + cases.task.n_support] and cases.task.n_support > 0


def test_a_cpu_shows_ratios_alone(found):
    sheet = tables.of_training(found, absolute=False)
    assert sheet.header[:3] == ["seed_axis", "seeds", "time / first"]
    assert "steps/s" not in sheet.header
    assert sheet.rows[0][:3] == ["vmap", "1", "1.00"]
    assert "flop/s" not in tables.summary_line(found | {"device": "cpu"}, absolute=False)
    assert [len(row) for row in sheet.rows] == [len(sheet.header)] * 4
    sheet = tables.of_rest(found, absolute=False)
    assert "users/s" not in sheet.header and sheet.rows[-1][0].startswith("checkpoint of 3 seeds")
    assert [len(row) for row in sheet.rows] == [len(sheet.header)] * 3


def test_an_accelerator_shows_times(found):
    for table in (tables.of_training, tables.of_rest):
        sheet = table(found, absolute=True)
        assert [len(row) for row in sheet.rows] == [len(sheet.header)] * len(sheet.rows)
    assert "flop/s" in tables.summary_line(found | {"device": "gpu"}, absolute=True)
    assert tables.of_training(found, absolute=True).header[-2] == "steps/s"


class OutOfMemory:
    """A device with room for two seeds."""

    def prepare(self, n_seeds):
        if n_seeds > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 seeds")
        return {}


def test_what_does_not_fit_is_left_out():
    said = []
    assert [r["seeds"] for r in prepare(OutOfMemory(), "", [1, 2, 5, 8], said.append)] == [1, 2]
    assert said == ["5 seeds: out of memory: left out, and more than these"]
    with pytest.raises(UserError, match="--seeds=5: out of memory"):
        prepare(OutOfMemory(), "", [5], said.append)


def test_streamed_data_are_refused():
    experiment = toy.toy_experiment()
    streamed = experiment.config.replace(**{"data.resident": False})
    with pytest.raises(UserError, match="--config.data.resident=False: expected True"):
        Cases(dataclasses.replace(experiment, config=streamed), 1, 1)

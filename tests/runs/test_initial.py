"""A run that begins from another: the same data, other data, other sizes."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import toy

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "serving"))
from _runs import run_of

from oa_jax.errors import UserError
from oa_jax.files import read_json
from oa_jax.runs import initial, names
from oa_jax.runs.names import Names
from oa_jax.runs.workdir import Workdir
from oa_jax.serving import exported
from oa_jax.serving.stored import StoredModel

pytestmark = pytest.mark.slow


def begun(path, source, backbone="abxi", gca="0-1", **changes):
    """(parameters of fresh states that begin from `source`, those without, what was said)."""
    changes |= {"train.init_from": str(source)}
    experiment, said = toy.small_experiment(backbone, f"pair=synthetic,gca={gca}", **changes), []
    states = experiment.engine.create(experiment.seeds, experiment.hparams())
    with Workdir(path) as workdir:
        after, told = initial.begin(experiment, range(len(experiment.seeds)), states)
        initial.keep(told, workdir, said.append)
    for one in (after.params, after.best_params):
        jax.tree.map(np.testing.assert_array_equal, one, after.params)
    flat = [initial.flat(jax.device_get(one)) for one in (after.params, states.params)]
    return *flat, said


def trained(backbone="abxi"):
    path = run_of(backbone)[1]
    return initial.flat(StoredModel(path, ensemble=True).params), path


def test_the_same_data_and_sizes_are_taken_whole(tmp_path):
    there, path = trained()
    after, _, said = begun(tmp_path, path)
    assert after.keys() == there.keys()
    for name in there:
        np.testing.assert_array_equal(after[name], there[name], err_msg=name)
    assert len(said) == 1 and "items (24 of 24 of A, 30 of 30 of B) of items" in said[0]
    told = read_json(tmp_path / "init_from.json")
    assert not told["fresh"] and told["rows"] == {"items": 55}


def test_a_source_is_read_again_only_when_it_has_changed(tmp_path):
    folder = exported.export(trained()[1], tmp_path / "export")
    source = initial.read(str(folder))
    assert initial.read(str(folder)) is source
    (folder / initial.MODEL).touch()
    assert initial.read(str(folder)) is not source


def test_an_export_gives_its_seed_to_all(tmp_path):
    there, path = trained()
    folder = exported.export(path, tmp_path / "export", seed=2)
    after, _, _ = begun(tmp_path / "run", folder, gca="0-1")
    for name in there:
        for slot in range(3):
            np.testing.assert_array_equal(after[name][slot], there[name][2], err_msg=name)


def test_what_is_not_there_or_of_another_size_stays_fresh(tmp_path):
    there, path = trained()
    after, fresh, said = begun(tmp_path, path, gca="0-2", **{"model.d_ffn": 4})
    told = read_json(tmp_path / "init_from.json")
    assert all(name.startswith("gca_2_") for name in told["fresh"] if "gca" in name)
    for name, values in after.items():
        expected = fresh if name in told["fresh"] else there
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert any("shape" in why for why in told["fresh"].values())
    assert (
        len(said) == 2 and said[1].startswith("fresh: ") and "more; see init_from.json" in said[1]
    )


def test_untied_tables_are_taken_by_rows(tmp_path):
    untied = {"model.tied": False}
    path = run_of("sasrec", gca="none", **untied)[1]
    there = initial.flat(StoredModel(path, ensemble=True).params)
    after, _, _ = begun(tmp_path, path, "sasrec", gca="none", **untied)
    told = read_json(tmp_path / "init_from.json")
    assert told["rows"] == {"items": 55, "items_out": 55} and not told["fresh"]
    for name in ("items", "items_out"):
        np.testing.assert_array_equal(after[name], there[name])
    assert np.abs(there["items"] - there["items_out"]).max() > 0.1


def test_items_of_another_set_are_known_by_raw_id(tmp_path, monkeypatch):
    """The other set has the items of every second own one, in the other order, and more."""
    there, path = trained()
    raw = [f"r{n}" for n in range(24)] + [f"r{n}" for n in range(30)]  # of either domain the same

    def called(raw):
        of = lambda log: Names([], raw, [None] * 54, log.n_items, True)  # noqa: E731
        monkeypatch.setattr(names, "of", of)

    called(raw)
    source = initial.read(str(path))
    mine = [r if n % 2 else f"new{n}" for n, r in enumerate(raw)]
    called(mine[23::-1] + mine[:23:-1])
    monkeypatch.setattr(
        initial, "read", lambda path: dataclasses.replace(source, fingerprint="other")
    )
    after, fresh, said = begun(tmp_path, path)
    assert "(12 of 24 of A, 15 of 30 of B)" in said[0]
    for n in range(54):
        place = 1 + (23 - n if n < 24 else 24 + 53 - n)  # where item n stands now
        expected = there["items"][:, 1 + n] if n % 2 else fresh["items"][:, place]
        np.testing.assert_array_equal(after["items"][:, place], expected)
    np.testing.assert_array_equal(after["positions"], there["positions"])


def test_numbers_say_nothing_of_another_sets_items():
    one = Names([], ["1", "2"], [None] * 2, (1, 1), False)
    assert not initial.matched(one, one).any()
    assert list(initial.matched(*[dataclasses.replace(one, are_raw=True)] * 2)) == [0, 1, 2]


def test_domains_are_known_by_their_names():
    """Where the two share one, which is the same letter's; else by their letters."""
    theirs = Names([], ["1", "2", "1"], [None] * 3, (2, 1), True, ("books", "films"))
    for called, expected in (
        (("books", "music"), [0, 1, 0]),
        (("music", "films"), [0, 0, 3]),
        (("x", "y"), [0, 1, 3]),
    ):
        own = Names([], ["1", "1"], [None] * 2, (1, 1), True, called)
        assert initial.matched(theirs, own).tolist() == expected, called


def test_rows_of_a_domains_own_table():
    match = np.array([0, 2, 0, 5, 4])  # own 2 + 2 items, theirs 3 + 2
    for name, own, theirs in (
        ("net/items", [0, 1, 3, 4], [0, 2, 5, 4]),
        ("local_A", [0, 1], [0, 2]),
        ("local_B", [0, 1, 2], [0, 2, 1]),
    ):
        found = initial._rows_of(name, match, (2, 2), (3, 2))
        np.testing.assert_array_equal(found, [own, theirs])


def test_a_domain_that_is_the_sources_other_one_is_refused(tmp_path, monkeypatch):
    """The parameters of a domain go by its letter."""
    _, path = trained()
    source = initial.read(str(path))
    for called in (("B", "A"), ("x", "A")):
        theirs = dataclasses.replace(
            source, names=dataclasses.replace(source.names, domains=called)
        )
        monkeypatch.setattr(initial, "read", lambda path, theirs=theirs: theirs)
        with pytest.raises(UserError, match="--config.train.init_from=.*: expected A and B in ord"):
            begun(tmp_path, path)


def test_other_text_tables_are_said(tmp_path, monkeypatch):
    _, path = trained("llm4cdsr")
    assert len(begun(tmp_path / "same", path, "llm4cdsr")[2]) == 1
    source = initial.read(str(path))
    monkeypatch.setattr(initial, "read", lambda path: dataclasses.replace(source, tables="others"))
    *_, said = begun(tmp_path / "others", path, "llm4cdsr")
    assert [line.startswith("its text tables are others than these: ") for line in said] == [0, 1]


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="--config.train.init_from=.*: no model.json or config.json"
    ):
        begun(tmp_path / "run", tmp_path)


def test_a_run_whose_text_tables_are_others_is_not_opened(tmp_path):
    _, path = trained("llm4cdsr")
    shutil.copytree(path, tmp_path / "run")
    env = read_json(tmp_path / "run" / "env.json")
    env["fingerprints"]["tables"] = "0" * 16
    (tmp_path / "run" / "env.json").write_text(json.dumps(env))
    with pytest.raises(UserError, match="its tables fingerprint is 0{16}, found "):
        StoredModel(tmp_path / "run")


def test_a_run_begins_once(tmp_path):
    """The first row of metrics.jsonl is that of the taken parameters; going on takes no others."""
    from oa_jax.runs import loop

    _, path = trained()
    experiment = toy.toy_experiment(train__init_from=str(path))
    said = []
    with Workdir(tmp_path) as workdir:
        states, _ = loop.train(experiment, workdir, said.append)
        again, _ = loop.train(experiment, workdir, said.append)
    assert sum(line.startswith("begins from") for line in said) == 1
    jax.tree.map(np.testing.assert_array_equal, states.params, again.params)

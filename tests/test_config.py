"""Typed configurations: their checks, presets, files, overrides and what older runs stored."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from oa_jax import configuration as config_lib
from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.commands import cli
from oa_jax.errors import UserError
from oa_jax.nn import fusion, gca
from oa_jax.nn.known import GCAConfig
from oa_jax.ranking.ranks import SELECTION

HERE = pathlib.Path(__file__).parent
STORED = json.loads((HERE / "stored_configs.json").read_text())


def get_config(argument="", backbone="abxi", **changes):
    config = presets.load(f"configs/{backbone}.py:{argument}")
    config.update_from_flattened_dict(changes)
    return config


def merged(a, b):
    both = {k for k in b if isinstance(b[k], dict) and isinstance(a.get(k), dict)}
    return {**a, **b, **{k: merged(a[k], b[k]) for k in both}}


def test_reading_a_configuration_costs_no_jax():
    program = (
        "import sys\nfrom oa_jax import presets\nfrom oa_jax.backbones import known\n"
        "known.resolve(presets.load('configs/cdsrnp.py:pair=synthetic'))\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("row", STORED, ids=[f"{r['version']} {r['made_by']}" for r in STORED])
def test_what_older_versions_stored_is_what_it_was(row):
    """`added`: what the last version before the typed groups made of `stored`."""
    found, expected = known.resolve(row["stored"]).to_dict(), merged(row["stored"], row["added"])
    for old, new in {"update": "part", "kv": "source"}.items():  # renamed since
        expected["gca"][new] = expected["gca"].pop(old)
    expected["train"]["writers"] = ["tensorboard"] * expected["train"].pop("tensorboard", False)
    fields = {"model.blocks"} | set(
        config_lib.defaults_taken(known.fields(found["backbone"]), expected)
    )
    for name in fields:  # added since, with the default that keeps what was done
        *groups, field = name.split(".")
        there, here = (functools.reduce(dict.__getitem__, groups, of) for of in (expected, found))
        there[field] = here[field]
    assert found == expected
    assert found["model"]["blocks"] == (1 if found["backbone"] == "abxi" else 2)


@pytest.mark.parametrize("row", [r for r in STORED if r["version"] == "5a6b1e3"], ids=str)
def test_the_files_of_configs_say_what_they_said(row):
    backbone, argument = row["made_by"].split(":")
    changes = {"gca.part": "orthogonal"} if "early" in argument else {}  # as it was stored with
    found, stored = known.resolve(get_config(argument, backbone, **changes)), row["stored"]
    if found.data.split == "own":  # which a run stores by the name of what it means
        found = found.replace(data={"split": stored["data"]["split"]})
    # Its default is another since, which changes no result.
    found = found.replace(train={"compaction": stored["train"]["compaction"]})
    assert found == known.resolve(stored)


@pytest.mark.parametrize("backbone", known.NAMES)
@pytest.mark.parametrize("more", ["", "gca=early", "gca=0-2", "size=small,gca=stack", "runlocal"])
def test_documented_arguments_resolve_and_survive_json(backbone, more):
    resolved = known.resolve(get_config(more, backbone))
    stored = json.loads(json.dumps(resolved.to_dict()))
    assert known.resolve(stored) == known.resolve(ConfigDict(stored)) == resolved
    assert config_lib.first_difference(known.resolve(stored), resolved) is None


@pytest.mark.parametrize("backbone", known.NAMES)
def test_every_field_has_a_check_and_a_meaning(backbone):
    for name, one in config_lib.fields_of(known.fields(backbone)):
        if name != "backbone":  # checked by the list of backbones
            assert one.metadata["meaning"] and one.metadata["expected"], name
            assert one.default is None or one.metadata["holds"](one.default), name


@pytest.mark.parametrize("backbone", known.NAMES)
def test_no_field_takes_an_object(backbone):
    config = known.resolve({"backbone": backbone})
    for name, one in config_lib.fields_of(type(config)):
        if one.metadata:
            with pytest.raises(UserError, match=rf"--config\.{name}=.*: expected"):
                config.replace(**{name: {"an": "object"}} if "." not in name else {name: 1j})


def test_choices_are_those_that_the_program_has():
    group = {one.name: one.metadata["holds"] for one in dataclasses.fields(GCAConfig)}
    assert all(group["gate_act"](name) for name in gca.GATE_ACTIVATIONS)
    assert all(group["gate_inner"](name) for name in gca.INNER_ACTIVATIONS)
    assert all(group["part"](name) for name in fusion.PARTS)
    selection = {one.name: one for one in dataclasses.fields(config_lib.Train)}["selection"]
    assert all(selection.metadata["holds"](name) for name in SELECTION)


MISTAKES = {
    "train.lerning_rate": "no such field: did you mean learning_rate?",
    "sedes": "no such field: did you mean seeds?",
    "gca.head": "no such field: did you mean heads?",
    "quirks.q99": "no such field: --config.quirks has q10_ties",
    "model.width": "no such field: --config.model has",
    "data.world.n_user": "no such field: did you mean n_users?",
}


@pytest.mark.parametrize("field", MISTAKES)
def test_a_misspelt_field_is_refused_from_any_source(field):
    """A file that sets it, a stored run, a notebook."""
    config = get_config()
    with config.unlocked():
        node = config
        for group in field.split(".")[:-1]:
            node = node[group]
        node[field.split(".")[-1]] = 1
    for source in (config, config.to_dict()):
        with pytest.raises(UserError, match=f"--config.{field}: {MISTAKES[field]}"):
            known.resolve(source)
    with pytest.raises(UserError, match=f"--config.{field}: {MISTAKES[field]}"):
        known.resolve({"backbone": "abxi"}).replace(**{field: 1})


@pytest.mark.parametrize("name", [None, "bert", 3, ["abxi"]], ids=str)
def test_another_backbone_is_refused(name):
    with pytest.raises(UserError, match="--config.backbone=.*: expected one of abxi, llm4cdsr"):
        known.resolve({"backbone": name})


@pytest.mark.parametrize("values", [None, [], "text", 3], ids=str)
def test_what_is_no_object_is_refused(values):
    with pytest.raises(UserError, match="--config: found .*, expected an object"):
        known.resolve(values)


@pytest.mark.parametrize(
    "places", [(0, 0), (1, 0), (3,), (-1,), (True,), (0.0,), ("0",), ([0],), 1, "0"], ids=str
)
def test_positions_are_ascending_places(places):
    with pytest.raises(UserError, match=r"--config.gca.positions=.*: expected"):
        known.resolve({"backbone": "abxi", "gca": {"positions": places}})


def test_a_fusion_needs_a_place():
    """Without one the baseline would be trained under its name."""
    with pytest.raises(UserError, match=r"gca.fusion=film: expected gca, as .* gca=early has one"):
        known.resolve({"backbone": "abxi", "gca": {"fusion": "film"}})


def test_a_gate_that_sees_y_needs_one_at_the_tokens_time():
    """Alignment puts no token of the other domain there in training, and may in evaluation."""
    gate = {"backbone": "abxi", "gca": {"gate_input": "source"}}
    assert known.resolve(gate).gca.source == "merged"
    with pytest.raises(UserError, match=r"^--config.gca.gate_input=source: expected update with"):
        known.resolve(gate | {"gca": {"gate_input": "source", "source": "other"}})


@pytest.mark.parametrize("places", [(), (0,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_positions_that_pass(places):
    config = known.resolve(get_config(**{"gca.positions": places}))
    assert config.gca.positions == places and config.to_dict()["gca"]["positions"] == list(places)


def test_places_follow_the_depth():
    deep = known.resolve(
        {"backbone": "llm4cdsr", "model": {"blocks": 4}, "gca": {"positions": [4]}}
    )
    assert deep.model.places == (0, 1, 2, 3, 4)
    with pytest.raises(UserError, match="gca.positions=.*4.*among 0, 1, 2"):
        deep.replace(model={"blocks": 2})
    with pytest.raises(UserError, match="model.blocks=2: expected one of 1"):
        known.resolve({"backbone": "abxi", "model": {"blocks": 2}})


@pytest.mark.parametrize("protocol", config_lib.PROTOCOLS)
def test_the_protocol_decides_the_quirks(protocol):
    config = known.resolve({"backbone": "llm4cdsr", "protocol": protocol})
    column = config_lib.PROTOCOLS.index(protocol)
    for one in dataclasses.fields(config.quirks):
        assert getattr(config.quirks, one.name) == one.metadata["presets"][column]
    other = config_lib.PROTOCOLS[1 - column]
    assert config.replace(protocol=other) == known.resolve(
        {"backbone": "llm4cdsr", "protocol": other}
    )


def test_one_quirk_can_be_turned_without_the_others():
    corrected = known.resolve({"backbone": "abxi", "protocol": "corrected"})
    turned = corrected.replace(quirks={"q3_attend_to_padding": True})
    pairs = zip(*(dataclasses.asdict(c.quirks).items() for c in (corrected, turned)), strict=True)
    assert [a[0] for a, b in pairs if a != b] == ["q3_attend_to_padding"]


def test_what_changes_no_result_may_differ_when_a_run_goes_on():
    stored = known.resolve(get_config(mesh="seed:2,data:2"))
    train = {"checkpoint_every": 1, "writers": ("tensorboard",)}
    free = {"train": train, "evaluate": {"block_items": 7}}
    same = stored.replace(mesh="", seed_axis="map", data={"dir": "elsewhere"}, **free)
    assert config_lib.first_difference(stored, same) is None
    for name, value in (("seeds", 6), ("train.max_epochs", 25), ("evaluate.n_negatives", 98)):
        found = config_lib.first_difference(stored, same.replace(**{name: value}))
        assert found.startswith(f"{name}: there ") and found.endswith(f"asked for {value}")
    other = config_lib.first_difference(stored, known.resolve({"backbone": "llm4cdsr"}))
    assert other == "backbone: there abxi, asked for llm4cdsr"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", ()), ("early", (0,)), ("stack", (0, 1)), ("2", (2,)), ("0-2", (0, 2))],
)
def test_places_of_the_argument(text, expected):
    assert presets.places(text) == expected


@pytest.mark.parametrize("text", ["", "garbage", "0-", "-1", "0,1", "0.5", "Early", "true"])
def test_other_places_are_refused(text):
    with pytest.raises(UserError, match=f"gca={text}: expected none, early, stack or"):
        presets.places(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {"a": "1", "b": "false"}),
        ("", {"a": "1", "b": "false"}),
        ("a=2", {"a": "2", "b": "false"}),
        ("b", {"a": "1", "b": "true"}),
        ("b,a=x=y", {"a": "x=y", "b": "true"}),
        ("a=2,,a=3,", {"a": "3", "b": "false"}),
    ],
)
def test_arguments(text, expected):
    assert presets.arguments(text, {"a": "1", "b": "false"}) == expected


def test_an_argument_without_its_value_is_one_line():
    with pytest.raises(UserError, match=r"^--config: argument 'b=': expected b=VALUE$"):
        presets.arguments("a=2,b=", {"a": "1", "b": "false"})


@pytest.mark.parametrize("mesh", ["seed", "seed:0", "batch:2", "seed:2;data:2", "4"])
def test_a_wrong_mesh_is_one_line(mesh):
    with pytest.raises(UserError, match=f"^--config.mesh={mesh}: expected sizes of the axes seed"):
        known.resolve(get_config(mesh=mesh))


FILES = {
    "def get_config(arg=None):\n    return {\n\nx = = 3\n": "line 2: not Python: '{' was never",
    "x = 1\n\n\ny = nobody\n": "line 4: NameError: name 'nobody'",
    "import nonexistent_module\n": "line 1: ModuleNotFoundError",
    "def get_config(arg=None):\n    return 1 / 0\n": "line 2: ZeroDivisionError",
    "import sys\nsys.exit(0)\n": "line 2: SystemExit: 0",
    "raise KeyboardInterrupt\n": "line 1: KeyboardInterrupt",
    "def get_config():\n    return None\n": "get_config returned NoneType: expected a ConfigDict",
    "def get_config():\n    return {}\n": "get_config returned dict: expected a ConfigDict",
    "x = 3\n": "has no attribute 'get_config'",
    "x = '\0'\n": "null bytes",
}


@pytest.mark.parametrize("text", FILES, ids=list(FILES.values()))
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        presets.load(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and FILES[text] in message


def test_values_of_no_field_in_a_file_are_refused():
    with pytest.raises(UserError, match="--config.train.lr: no such field"):
        presets.configure("abxi", {"train.lr": 1.0})
    with pytest.raises(UserError, match="backbone=bert: expected one of abxi"):
        presets.base("bert")


def test_a_file_gets_its_arguments(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(arg='default'):\n    return ml_collections.ConfigDict({'arg': arg})\n"
    )
    for text, expected in (("", "default"), (":", ""), (":a=b:c", "a=b:c")):
        assert presets.load(f"{path}{text}").arg == expected


OVERRIDES = {
    "--config.bogus=1": "--config.bogus: no such field: --config has backbone, data, ",
    "--config.model.width=1": "--config.model.width: no such field: --config.model has attention, ",
    "--config.seeds.x=1": "--config.seeds.x: no such field: --config.seeds is a single value",
    "-config.modle": "--config.modle: no such field: did you mean model? --config has",
    "--noconfig.train.compress": "--config.train.compress: no such field: --config.train has ",
    "--config.model=3": "--config.model: a group: expected one of its fields ",
    "--config.=3": "--config.: no such field",
}


@pytest.mark.parametrize("word", OVERRIDES)
def test_an_override_of_no_field_is_refused(word):
    with pytest.raises(UserError) as caught:
        cli.check_overrides(get_config(), ["--workdir=x", word, "--config.seeds=1"])
    assert str(caught.value).startswith(OVERRIDES[word])


def test_overrides_that_pass():
    good = ["--config.seeds=1", "--config.model.d_embed", "-config.data.world.seed=1"]
    cli.check_overrides(get_config(), [*good, "--noconfig.train.compaction", "--configs.x=1"])

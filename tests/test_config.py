"""Arguments of a configuration file, the rules of its fields, and how --config is read."""

import importlib.util
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from oa_jax import config as config_lib
from oa_jax.backbones.known import BACKBONES
from oa_jax.commands import cli
from oa_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
PLACES = (0, 1, 2)
# Checked elsewhere: by `resolve` itself, by the data, by the type of a quirk.
RULES = (*config_lib.RULES, *config_lib.OWN_RULES["abxi"])
NOT_IN_RULES = (
    *("backbone", "gca.positions", "quirks."),
    *("data.name", "data.dir", "data.tables", "data.world."),
)


def get_config(argument=None, backbone="abxi", **changes):
    spec = importlib.util.spec_from_file_location("config_file", CONFIGS / f"{backbone}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    config.update_from_flattened_dict(changes)
    return config


def fields(tree, path=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from fields(value, f"{path}{name}.")
        else:
            yield path + name


@pytest.mark.parametrize("pair", ["beauty_elec", "food_kitchen", "synthetic"])
@pytest.mark.parametrize("more", ["", "gca=early", "gca=0-2", "size=small,gca=stack", "runlocal"])
def test_documented_arguments_resolve_and_survive_json(pair, more):
    resolved = config_lib.resolve(get_config(f"pair={pair},{more}"), PLACES)
    stored = json.loads(json.dumps(resolved))
    assert stored == resolved
    assert config_lib.resolve(ConfigDict(stored), PLACES) == resolved
    assert config_lib.first_difference(stored, resolved) is None
    assert resolved["data"]["name"] == pair


@pytest.mark.parametrize("backbone", config_lib.QUIRKS)
def test_every_field_has_a_rule_and_every_rule_a_field(backbone):
    known = set(fields(get_config(backbone=backbone).to_dict()))
    ruled = {rule.field for rule in (*config_lib.RULES, *config_lib.OWN_RULES[backbone])}
    assert ruled <= known
    assert [f for f in sorted(known - ruled) if not f.startswith(NOT_IN_RULES)] == []


@pytest.mark.parametrize("field", [rule.field for rule in RULES])
def test_a_missing_field_is_named(field):
    config = get_config()
    config.unlock()
    *groups, name = field.split(".")
    node = config
    for group in groups:
        node = node[group]
    del node[name]
    with pytest.raises(UserError, match=rf"--config\.{field}: missing: expected"):
        config_lib.resolve(config, PLACES)


@pytest.mark.parametrize(
    "places", [(0, 0), (1, 0), (3,), (-1,), (True,), (0.0,), ("0",), ([0],), (1j,)], ids=str
)
def test_positions_are_ascending_places(places):
    with pytest.raises(UserError, match=r"--config.*: expected"):
        config_lib.resolve(get_config(**{"gca.positions": places}), PLACES)


@pytest.mark.parametrize("places", [(), (0,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_positions_that_pass(places):
    resolved = config_lib.resolve(get_config(**{"gca.positions": places}), PLACES)
    assert resolved["gca"]["positions"] == list(places)


def test_one_quirk_can_be_turned_without_the_others():
    corrected = config_lib.resolve(get_config(protocol="corrected"), PLACES)["quirks"]
    turned = get_config(protocol="corrected", **{"quirks.q3_attend_to_padding": True})
    resolved = config_lib.resolve(turned, PLACES)["quirks"]
    assert [k for k in resolved if resolved[k] != corrected[k]] == ["q3_attend_to_padding"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", ()), ("early", (0,)), ("stack", (0, 1)), ("2", (2,)), ("0-2", (0, 2))],
)
def test_places_of_the_argument(text, expected):
    assert config_lib.positions(text) == expected


@pytest.mark.parametrize("text", ["", "garbage", "0-", "-1", "0,1", "0.5", "Early", "true"])
def test_other_places_are_refused(text):
    with pytest.raises(UserError, match=f"gca={text}: expected none, early, stack or"):
        config_lib.positions(text)


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
    assert config_lib.arguments(text, {"a": "1", "b": "false"}) == expected


@pytest.mark.parametrize("mesh", ["seed", "seed:0", "batch:2", "seed:2;data:2", "4"])
def test_a_wrong_mesh_is_one_line(mesh):
    with pytest.raises(UserError, match=f"^--config.mesh={mesh}: expected sizes of the axes seed"):
        config_lib.resolve(get_config(mesh=mesh), PLACES)


def test_a_run_may_go_on_on_another_mesh():
    stored = config_lib.resolve(get_config(mesh="seed:2,data:2"), PLACES)
    other = config_lib.resolve(get_config(), PLACES)
    assert config_lib.first_difference(stored, other) is None
    del stored["mesh"]  # as before there was one
    assert config_lib.first_difference(stored, other) is None
    assert "seed_axis" in config_lib.first_difference(stored, other | {"seed_axis": "map"})


@pytest.mark.parametrize("stored", [None, [], "text", 3], ids=str)
def test_a_stored_configuration_that_is_no_object_differs(stored):
    assert "expected an object" in config_lib.first_difference(stored, {"a": 1})


FILES = {
    "def get_config(arg=None):\n    return {\n\nx = = 3\n": "line 2: not Python: '{' was never",
    "x = 1\n\n\ny = nobody\n": "line 4: NameError: name 'nobody'",
    "import nonexistent_module\n": "line 1: ModuleNotFoundError",
    "def get_config(arg=None):\n    return 1 / 0\n": "line 2: ZeroDivisionError",
    "def get_config():\n    return None\n": "get_config returned NoneType: expected a ConfigDict",
    "def get_config():\n    return {}\n": "get_config returned dict: expected a ConfigDict",
    "from oa_jax import config\nx = 1\nconfig.base('bert')\n": "line 3: KeyError: 'bert'",
    "x = 3\n": "has no attribute 'get_config'",
    "x = '\0'\n": "null bytes",
}


@pytest.mark.parametrize("text", FILES, ids=list(FILES.values()))
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        cli.load_config(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and FILES[text] in message


def test_a_file_gets_its_arguments(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(arg='default'):\n    return ml_collections.ConfigDict({'arg': arg})\n"
    )
    for text, expected in (("", "default"), (":", ""), (":a=b:c", "a=b:c")):
        assert cli.load_config(f"{path}{text}").arg == expected


OVERRIDES = {
    "--config.bogus=1": "--config.bogus: no such field: --config has backbone, data, ",
    "--config.model.width=1": "--config.model.width: no such field: --config.model has d_embed, ",
    "--config.seeds.x=1": "--config.seeds.x: no such field: --config.seeds is a single value",
    "-config.modle": "--config.modle: no such field",
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


@pytest.mark.parametrize("backbone", ["llm4cdsr", "cdsrnp"])
def test_places_follow_from_the_number_of_blocks(backbone):
    def resolve(blocks, places):
        changes = {"model.blocks": blocks, "gca.positions": places}
        config = get_config(backbone=backbone, **changes)
        return config_lib.resolve(config, BACKBONES[backbone].places)

    assert resolve(3, (0, 3))["gca"]["positions"] == [0, 3]
    with pytest.raises(UserError, match="ascending order among 0, 1$"):
        resolve(1, (2,))
    with pytest.raises(UserError, match="model.blocks=0: expected a whole number of at least 1"):
        resolve(0, ())


@pytest.mark.parametrize("backbone", config_lib.QUIRKS)
def test_an_older_configuration_names_the_part_otherwise(backbone):
    now = config_lib.resolve(get_config(backbone=backbone, **{"gca.part": "parallel"}), PLACES)
    old = json.loads(json.dumps(now))
    old["gca"]["update"] = old["gca"].pop("part")
    for group, field in (("gca", "fusion"), ("gca", "part_of"), ("model", "blocks")):
        old[group].pop(field, None)
    assert config_lib.completed(old)[0] == now

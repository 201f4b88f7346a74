import pytest

from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.bench.measure import counts, variants
from oa_jax.errors import UserError


@pytest.fixture(scope="module")
def config():
    return known.resolve(presets.base("abxi"))


def test_numbers_ascend_and_occur_once():
    assert counts(["5", "1", " 2", "5"]) == [1, 2, 5]
    for words in ([], ["1", "x"], ["0"], ["-1"]):
        with pytest.raises(UserError, match="--seeds=.*expected numbers such as 1,2,5"):
            counts(words)


def test_variants_differ_in_one_field(config):
    assert variants(config, None) == {"": config}
    found = variants(config, "train.learning_rate=1e-3,0.5")
    assert [one.train.learning_rate for one in found.values()] == [1e-3, 0.5]
    assert list(found) == ["1e-3", "0.5"] and config.train.learning_rate == 1e-4
    assert found["0.5"].seeds == config.seeds
    assert variants(config, "seed_axis=map")["map"].seed_axis == "map"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.sides=1", "expected FIELD=VALUE"),
        ("train=1", "expected FIELD=VALUE"),
        ("nothing.at.all=1", "expected FIELD=VALUE"),
        ("train.batch_size=8,y", "'y': expected a whole number"),
        ("seed_axis=map,spin", "--config.seed_axis=spin: expected one of"),
    ],
)
def test_mistakes(config, text, expected):
    with pytest.raises(UserError, match=expected):
        variants(config, text)

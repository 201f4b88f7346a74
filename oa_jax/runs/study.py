"""Studies: named configurations, those that one compiled program can train, and equal sizes.

A study is a file with `get_study(argument)`, which returns `{name: configuration}`; the name is
the folder of the run. `grid` makes one out of axes, `matched` finds the width of a baseline.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.configuration import Config
from oa_jax.data import sources
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split
from oa_jax.experiment import traced_fields
from oa_jax.nn.fusion import matched_width

EXPECTED = "a file such as configs/studies/phase.py"
# Fields beside the traced ones and the seeds that no program depends on.
HOST = ("train.checkpoint_every", "train.keep_checkpoints", "train.compaction", "train.writers")
# What may grow for `matched`, and in which steps.
SIZES = {"width": "model.d_embed", "depth": "model.blocks", "ffn": "model.d_ffn"}
_width = functools.cache(matched_width)


@dataclasses.dataclass(frozen=True)
class Search:
    """Configurations that are chosen as results come in, by the package `optuna`.

    make: gets an `optuna.Trial`, whose suggestions it makes a configuration of.
    trials: how many. What counts is the median over seeds of the best validation score.
    Raises UserError where they are no function and no whole number above 0.
    """

    make: Callable[[Any], Any]
    trials: int

    def __post_init__(self):
        if not callable(self.make):
            raise UserError(f"Search: make={self.make!r}: expected a function of a trial")
        if type(self.trials) is not int or self.trials < 1:
            raise UserError(
                f"Search: trials={self.trials!r}: expected a whole number of at least 1"
            )


def load(reference: str) -> dict[str, Config] | Search:
    """What `get_study(ARGUMENT)` of FILE.py returns, for `FILE.py:ARGUMENT`, checked.

    Raises UserError naming the file and the run that is wrong.
    """
    found = presets.call(reference, "get_study", "--study", EXPECTED)
    return found if isinstance(found, Search) else checked(found, reference.split(":")[0])


def checked(runs: Any, where: str) -> dict[str, Config]:
    """`{name: configuration of any source}` with the names and configurations checked."""
    if not isinstance(runs, Mapping) or not runs:
        kind = type(runs).__name__ if not isinstance(runs, Mapping) else "no run"
        raise UserError(f"{where}: found {kind}: expected {{name: configuration}}")
    out, objects = {}, {}
    for name, values in runs.items():
        first = objects.setdefault(id(values), name)
        if first is not name and not isinstance(values, Config):
            # What was set for the first has been overwritten for the last.
            found = f"runs {first} and {name} are one object"
            raise UserError(f"{where}: {found}: expected a configuration of its own for each")
        if not isinstance(name, str) or not re.fullmatch(r"[\w=+-][\w.,=+-]{,199}", name):
            raise UserError(
                f"{where}: run {name!r}: expected a name of letters, digits and . , = + - _, "
                "as it is a folder's"
            )
        try:
            out[name] = known.resolve(values)
        except UserError as error:
            raise UserError(f"{where}: run {name}: {error}") from None
    return out


def grid(make: Callable[..., Any], **axes: Iterable) -> dict[str, Any]:
    """`make(**values)` for every combination of the axes' values, by names `axis=value,…`.

    make: gets a value of each axis and returns a configuration, or None to leave it out. Raises
    UserError where two would have one name, in which a number has six digits.
    """
    out = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        if (config := make(**point)) is not None:
            name = ",".join(f"{axis}={_word(value)}" for axis, value in point.items())
            if name in out:
                raise UserError(f"study: two runs are called {name}: expected values further apart")
            out[name] = config
    return out


def _word(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "-".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def program_key(config: Config) -> str:
    """Equal for configurations that one compiled program can train: those that differ in seeds,
    in traced values and in what only the host reads."""
    values = config.to_dict()
    for name in (*traced_fields(config).values(), *HOST, "seeds", "first_seed"):
        *groups, last = name.split(".")
        del functools.reduce(dict.__getitem__, groups, values)[last]
    return json.dumps(values, sort_keys=True)


def programs(runs: Mapping[str, Config]) -> list[dict[str, Config]]:
    """The runs in groups, each of one program, in the order of their first."""
    groups: dict[str, dict[str, Config]] = {}
    for name, config in runs.items():
        groups.setdefault(program_key(config), {})[name] = config
    return list(groups.values())


@functools.cache
def _events(name, directory, rule, world, skip_short) -> tuple[InteractionLog, Split]:
    log = sources.load(name, directory, world)
    return log, splits.make_split(log, rule, skip_short)


def n_parameters(config: Config) -> int:
    """Trained numbers of one seed. Its data are read, and nothing is compiled."""
    return _parameters(program_key(config))


@functools.cache
def _parameters(key: str) -> int:
    config = known.resolve(json.loads(key))  # the fields that the key lacks change no number
    parts, data = known.parts(config), config.data
    log, split = _events(data.name, data.dir, data.split, data.world, parts.skip_short)
    backbone = parts.backbone(log.n_items, parts.empty_tables(log, split))
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def with_fusion(of: Any, fusion: str) -> Config:
    """A configuration with GCA, with another fusion in its place that has as many parameters."""
    config = known.resolve(of).replace(**{"gca.fusion": fusion})
    width = _width(config.gca, config.model.d_embed, config.model.heads)
    return config.replace(**{"gca.width": width}) if fusion != "gca" else config


def matched(of: Any, base: Any, by: str = "width") -> Config:
    """`base` in the size whose number of parameters is nearest to that of `of`.

    by: "width" (multiples of the attention heads), "depth" (blocks) or "ffn" (width of the
    feed-forward layers). Raises UserError where `base` has no such field.
    """
    of, base = known.resolve(of), known.resolve(base)
    field = presets.choice("by", by, SIZES) and SIZES[by]
    group, _, name = field.partition(".")
    if not hasattr(getattr(base, group), name):
        raise UserError(f"by={by}: {base.backbone} has no {field}: expected another size")
    target = n_parameters(of)
    step = math.lcm(base.model.heads, base.gca.heads or 1) if by == "width" else 1

    def sized(times: int) -> Config:
        return base.replace(**{field: times * step})

    def number(times: int) -> int:  # grows with the size
        return n_parameters(sized(times))

    most = 2
    while number(most) < target:
        most *= 2
    least = bisect.bisect_left(range(most), target, most // 2 + 1, key=number)
    return sized(min((least - 1, least), key=lambda times: abs(number(times) - target)))

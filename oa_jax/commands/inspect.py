"""`python -m oa_jax inspect --config=FILE.py:ARGS`: parameters, and predicted memory of the step.

Nothing is trained or allocated: the epoch is compiled for this machine's device and its buffer
sizes are read off the compiled program. `--fields` prints the page of all fields that a
configuration has, in Markdown, and needs no --config. `--match=FILE.py:ARGS` finds the size of
--config whose number of parameters is nearest to that of another configuration.
"""

import dataclasses
from typing import Any

import jax
from absl import flags

from oa_jax import configuration as config_lib
from oa_jax import experiment as experiment_lib
from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.commands import cli
from oa_jax.configuration import Config
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.engine.mesh import bytes_on_device
from oa_jax.experiment import Experiment
from oa_jax.nn.fusion import matched_width, n_parameters
from oa_jax.runs import study
from oa_jax.runs.initial import flat
from oa_jax.sheets import Sheet

flags.DEFINE_bool("memory", True, "Compile the epoch and print its predicted memory.")
flags.DEFINE_bool("fields", False, "Print the page of all fields of a configuration instead.")
flags.DEFINE_string("match", None, "FILE.py:ARGS of the configuration to be as large as.")
flags.DEFINE_enum("by", "width", list(study.SIZES), "What of --config grows, with --match.")
cli.define_config()

PAGE = """# Fields of a configuration

Every field, with its default, what it means and what it may be: `--config.GROUP.FIELD=VALUE` on a
command line, `config.replace(...)` in a program. Fields marked * change no result beyond rounding:
a run may go on with other values. Made by `python -m oa_jax inspect --fields`.
"""


def main(_):
    if flags.FLAGS.fields:
        print(fields_page(), end="")
        return
    if flags.FLAGS.match:
        return show_matched(presets.load(flags.FLAGS.match), cli.config_value(), flags.FLAGS.by)
    experiment = experiment_lib.build(cli.config_value())
    show_parameters(experiment)
    if flags.FLAGS.memory:
        use_compilation_cache(cli.say)
        with cli.working("compiling an epoch, for the memory that it takes: up to minutes"):
            sheet = memory_sheet(experiment)
        if sheet is None:
            cli.say("this device's compiler does not say how much memory the program takes")
        else:
            sheet.show(cli.console)


def show_matched(of: Any, base: Config, by: str) -> None:
    """The size of `base` that has as many parameters as `of`, and the flag that sets it."""
    found, field = study.matched(of, base, by), study.SIZES[by]
    numbers = [study.n_parameters(known.resolve(config)) for config in (of, found)]
    size = config_lib.value_of(found, field)
    share = numbers[1] / numbers[0] - 1
    cli.say(
        f"--config.{field}={size}: {numbers[1]:,} parameters, of {numbers[0]:,} asked for "
        f"({share:+.3%})"
    )


def fields_page() -> str:
    """configs/FIELDS.md: a table for each group, a row for each field; several where backbones
    differ, with their names."""
    groups: dict[str, dict[str, dict[tuple[str, ...], list[str]]]] = {}
    for backbone in known.NAMES:
        for name, one in config_lib.fields_of(known.fields(backbone)):
            group, _, field = name.rpartition(".")
            forms = groups.setdefault(group, {}).setdefault(f"`{field}`", {})
            forms.setdefault(_cells(one), []).append(backbone)
    header, page = ["field", "default", "meaning", "expected", "backbones"], [PAGE]
    for group, fields in sorted(groups.items()):
        rows = [
            [field, *cells, "all" if len(names) == len(known.NAMES) else ", ".join(names)]
            for field, forms in fields.items()
            for cells, names in forms.items()
        ]
        title = f"`{group}`" if group else "Of the whole"
        page.append(f"## {title}\n\n{Sheet('', header, rows, words=5).markdown()}")
    return "\n".join(page)


def _cells(one: dataclasses.Field) -> tuple[str, str, str]:
    """Default, meaning, and what is expected."""
    about = one.metadata
    if not about:  # the one field that decides what the others are
        return "", "the model", f"one of {', '.join(known.NAMES)}"
    default = f"`{one.default!r}`"
    if "presets" in about:
        official, corrected = about["presets"]
        default = f"`{official}`; with `protocol=corrected` `{corrected}`"
    return default, about["meaning"] + " *" * about["free"], about["expected"]


def show_parameters(experiment: Experiment) -> None:
    """The parameter table: path, shape, number, and the total."""
    shapes = flat(jax.eval_shape(experiment.engine.settings.backbone.init, jax.random.key(0)))
    rows = [[k, "x".join(map(str, a.shape)), f"{a.size:,}"] for k, a in shapes.items()]
    Sheet("", ["parameter", "shape", "number"], rows, words=2).show(cli.console)
    total, places = experiment.engine.n_parameters, experiment.config.gca.positions
    cli.say(f"{experiment.label}: {total:,} parameters")
    if places:
        added = sum(a.size for name, a in shapes.items() if "gca_" in name)
        each = added // len(places)
        cli.say(
            f"of these {total - added:,} without GCA and {each:,} for each of {len(places)} places"
        )
        gca, model = experiment.config.gca, experiment.config.model
        if gca.fusion != "gca":
            sizes = gca.heads or model.heads
            width = matched_width(gca, model.d_embed, sizes)
            matched = dataclasses.replace(gca, width=width)
            each = 2 * n_parameters(matched, model.d_embed, sizes)
            cli.say(f"gca.width={width} gives it {each:,}, the nearest to those of GCA")


def memory_sheet(experiment: Experiment) -> Sheet | None:
    """Buffers of the compiled epoch over all seeds; None where the compiler does not say."""
    engine, seeds = experiment.engine, experiment.seeds
    states, capacity = engine.abstract(seeds, experiment.hparams()), engine.capacity(seeds, 0)
    arrays = jax.eval_shape(lambda a: a, experiment.train_arrays())
    memory = engine.compiled("epoch", states, arrays, capacity).memory_analysis()
    if memory is None:
        return None

    parts = {
        "state (parameters, moments, best)": bytes_on_device(states),
        "data on the device": bytes_on_device(engine.on_device(arrays, len(seeds))),
        "results not in place of arguments": memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    parts["sum"] = sum(parts.values())
    counted = f"{len(seeds)} seed{'s' * (len(seeds) > 1)} by {engine.axis}"
    counted += ", on each device" * (len(engine.layout.devices) > 1)
    title = f"predicted memory of an epoch, {counted}, capacity {capacity}"
    rows = [[name, f"{value / 2**20:.1f}"] for name, value in parts.items()]
    return Sheet(title, ["part", "MiB"], rows)

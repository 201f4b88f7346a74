"""What the files in configs/ are written with, and how they are found and read.

A file has `get_config(argument)` and returns a `ml_collections.ConfigDict`, so that
`--config=FILE:argument --config.train.batch_size=64` can change any field.
"""

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import pathlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

import oa_jax
from oa_jax.backbones import known
from oa_jax.configuration import choice, fields_of, unknown_field
from oa_jax.errors import UserError

EXPECTED = "a file such as configs/abxi.py:gca=early"
SIZES = {"size": "official", "runlocal": "false"}  # arguments of every file, see `layers`


def base(backbone: str) -> ConfigDict:
    """Every field of a backbone with its default, to change and to return from `get_config`."""
    kind = known.fields(choice("backbone", backbone, known.NAMES))
    out = ConfigDict(dataclasses.asdict(kind()))
    for name, one in fields_of(kind):
        if one.default is None:  # a placeholder, so that the command line knows its type
            type_ = bool if name.startswith("quirks.") else str
            out.update_from_flattened_dict({name: config_dict.placeholder(type_)})
    return out


def configure(backbone: str, *layers: Mapping[str, Any] | None | bool) -> ConfigDict:
    """`base(backbone)` with the values of each layer, {dotted name: value}, later ones over
    earlier ones. A layer that is None or False is left out."""
    config = base(backbone)
    for layer in filter(None, layers):
        for name in layer:
            check_field(config, name)
        config.update_from_flattened_dict(layer)
    return config


def check_field(config: ConfigDict, name: str) -> None:
    """Raise UserError unless the dotted name is that of a single value."""
    node, above = config, "--config"
    for part in name.split("."):
        if not isinstance(node, ConfigDict):
            raise UserError(f"--config.{name}: no such field: {above} is a single value")
        if part not in node:
            raise UserError(unknown_field(name, part, above, list(node)))
        node, above = node[part], f"{above}.{part}"
    if isinstance(node, ConfigDict):
        raise UserError(f"{above}: a group: expected one of its fields {', '.join(node)}")


def arguments(
    text: str | None, defaults: Mapping[str, str], flag: str = "--config"
) -> dict[str, str]:
    """`a=x,b=y,flag` of `--config=file.py:…` over `defaults`; a bare word is a flag, "true"."""
    out = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        name, given, value = part.partition("=")
        if name not in defaults:
            raise UserError(f"{flag}: argument {name!r}: expected one of {', '.join(defaults)}")
        if given and not value:
            raise UserError(f"{flag}: argument {part!r}: expected {name}=VALUE")
        out[name] = value or "true"
    return out


def layers(
    args: Mapping[str, str],
    pairs: Mapping[str, dict],
    small: dict,
    synthetic: dict,
    runlocal: dict,
    runlocal_real: dict,
) -> tuple[dict | None | bool, ...]:
    """What the arguments `pair`, `gca`, `size` and `runlocal` of a file in configs/ say, as layers
    for `configure`. runlocal_real: beside `runlocal`, for any pair but the synthetic one."""
    pair, is_synthetic = args["pair"], args["pair"] == "synthetic"
    is_small = choice("size", args["size"], ("official", "small")) == "small"
    is_local = is_true("runlocal", args["runlocal"])
    return (
        {"data.name": pair, "gca.positions": places(args["gca"])},
        pairs.get(pair),
        is_small and small,
        is_synthetic and synthetic,
        is_local and runlocal,
        is_local and not is_synthetic and runlocal_real,
    )


def is_true(name: str, value: str) -> bool:
    return choice(name, value, ("true", "false")) == "true"


def study_arguments(text: str | None, **defaults: str) -> tuple[dict[str, str], bool]:
    """(arguments, runlocal) of a file in configs/studies/, which has these beside `runlocal`."""
    args = arguments(text, defaults | {"runlocal": "false"}, "--study")
    return args, is_true("runlocal", args["runlocal"])


def of_study(reference: str, runlocal: bool, fields: Mapping[str, Any] | None = None) -> ConfigDict:
    """`load(reference)` with five seeds, and fields unless they are ""; runlocal: small, with two
    seeds."""
    config = load(reference + ",runlocal" * runlocal)
    given = {name: value for name, value in (fields or {}).items() if value != ""}
    config.update_from_flattened_dict({"seeds": 2 if runlocal else 5} | given)
    return config


def places(text: str) -> tuple[int, ...]:
    """Places of GCA from `none`, `early`, `stack` or numbers such as `0-1`."""
    parts = {"none": [], "early": ["0"], "stack": ["0", "1"]}.get(text, text.split("-"))
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"gca={text}: expected none, early, stack or places such as 0-1")
    return tuple(map(int, parts))


def load(reference: str) -> ConfigDict:
    """What `get_config(ARGUMENTS)` of FILE.py returns, for `FILE.py:ARGUMENTS`."""
    config = call(reference, "get_config", "--config", EXPECTED)
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        file = reference.split(":", 1)[0]
        raise UserError(f"{file}: get_config returned {kind}: expected a ConfigDict")
    return config


def call(reference: str, function: str, flag: str, expected: str) -> Any:
    """What `function(ARGUMENTS)` of FILE.py returns, for `flag=FILE.py:ARGUMENTS`.

    A path that begins with `configs/` and is not in the current folder is looked for beside the
    package. Raises UserError naming file and line of whatever goes wrong in it.
    """
    path, *argument = reference.split(":", 1)
    file = pathlib.Path(path)
    if not file.is_file() and file.parts[:1] == ("configs",):
        package = pathlib.Path(oa_jax.__file__).parent  # in a checkout configs/ lies beside it
        file = next(filter(pathlib.Path.is_file, (package / file, package.parent / file)), file)
    if not file.is_file():
        raise UserError(f"{flag}={path}: no such file: expected {expected}")
    loader = importlib.machinery.SourceFileLoader("experiment_file", str(file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    with blaming(file, path):
        loader.exec_module(module)
        return getattr(module, function)(*argument)


@contextlib.contextmanager
def blaming(file: str | pathlib.Path, path: str) -> Iterator[None]:
    """What goes wrong in a user's `file` as a UserError that names it, as `path`, and the line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        line = error.lineno if error.filename == str(file) else None
        raise UserError(f"{path}: line {line}: not Python: {error.msg}") from None
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        trace = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in trace if frame.filename == str(file)]
        where = f"line {lines[-1]}: " if lines else ""
        raise UserError(f"{path}: {where}{type(error).__name__}: {error}") from None

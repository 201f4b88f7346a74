"""The backbones of the program: the only list of them. Reading a configuration costs no JAX."""

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from oa_jax import configuration
from oa_jax.backbones.base import Parts
from oa_jax.configuration import Config, choice
from oa_jax.errors import UserError

NAMES = ("abxi", "llm4cdsr", "cdsrnp", "sasrec")  # a folder each


def fields(name: str) -> type[Config]:
    """The configuration of a backbone."""
    return importlib.import_module(f"oa_jax.backbones.{name}.fields").Config


def parts(config: Config) -> Parts:
    """What the house asks of the configuration's backbone."""
    return importlib.import_module(f"oa_jax.backbones.{config.backbone}.parts").Parts(config)


def resolve(values: Any) -> Config:
    """Values of any source as a checked configuration.

    values: a `Config`, a `ml_collections.ConfigDict` or nested dictionaries. Raises UserError
    naming the field, what was found and what was expected.
    """
    values = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(values, dict):
        raise UserError(f"--config: found {type(values).__name__}, expected an object")
    name = choice("--config.backbone", values.get("backbone"), NAMES)
    return configuration.build(fields(name), values)


def having(part: str) -> dict[str, ModuleType]:
    """{backbone: its module of that name}, of the backbones that have one, such as "parity"."""
    names = {name: f"oa_jax.backbones.{name}.{part}" for name in NAMES}
    return {k: importlib.import_module(v) for k, v in names.items() if importlib.util.find_spec(v)}

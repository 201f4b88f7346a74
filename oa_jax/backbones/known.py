"""The backbones of the program: the only list of them. Reading a configuration costs no JAX."""

from __future__ import annotations

import importlib
from typing import Any

from oa_jax import config
from oa_jax.backbones.base import Parts
from oa_jax.config import Config, choice

NAMES = ("abxi", "llm4cdsr", "cdsrnp")  # a folder each


def fields(name: str) -> type[Config]:
    """The configuration of a backbone."""
    return importlib.import_module(f"oa_jax.backbones.{name}.fields").Config


def parts(config: Config) -> Parts:
    """What the house asks of the configuration's backbone."""
    return importlib.import_module(f"oa_jax.backbones.{config.backbone}.parts").Parts(config)


def resolve(values: Any) -> Config:
    """Values of any source as a checked configuration; see `config.build`."""
    values = values.to_dict() if hasattr(values, "to_dict") else values
    name = values.get("backbone") if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise config.UserError(f"--config: found {type(values).__name__}, expected an object")
    return config.build(fields(choice("--config.backbone", name, NAMES)), values)

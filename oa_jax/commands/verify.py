"""`python -m oa_jax verify FIXTURE.npz …`: our model against values of the official code.

A fixture of ABXI or LLM4CDSR, known by its `meta`, holds official weights (`param/*`), training
inputs and outputs (`train/*`), gradients (`grad/*`), parameters after one optimizer step
(`step1/*`), evaluation inputs and outputs (`val/*` or `valid/*`, `test/*`) and, in `meta`, the
configuration as JSON. Sizes may be any. Errors are relative to the largest absolute value of the
expected array.
"""

from __future__ import annotations

import json

from absl import flags

from oa_jax import files
from oa_jax.backbones import known
from oa_jax.backbones.parity import Arrays, Errors
from oa_jax.commands import cli
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.errors import UserError
from oa_jax.sheets import Sheet

flags.DEFINE_float("tolerance", 1e-5, "Largest relative error that passes.", lower_bound=0.0)


def main(paths):
    if not paths:
        raise UserError("no fixture given: expected FIXTURE.npz …")
    use_compilation_cache(cli.say)
    worst = 0.0
    for path in paths:
        errors = verify(path)
        rows = [[name, str(count), f"{error:.2e}"] for name, (count, error) in errors.items()]
        header = ["quantity", "arrays", "largest relative error"]
        Sheet(path, header, rows).show(cli.console)
        worst = max(worst, *(error for _, error in errors.values()))
    tolerance = flags.FLAGS.tolerance
    passed = worst <= tolerance
    sign = "<=" if passed else ">"
    cli.say(f"{'passed' if passed else 'FAILED'}: largest error {worst:.2e} {sign} {tolerance:g}")
    return 0 if passed else 1


def verify(path: str) -> Errors:
    """{quantity: (number of arrays, largest relative error)} of one fixture.

    Raises UserError when the file cannot be read or an array is missing or has another shape.
    """
    fixture, meta = read(path)
    parities = known.having("parity")
    found = [one for one in parities.values() if one.MARK in meta]
    if not found:
        marks = " or ".join(f"{one.MARK!r} ({name})" for name, one in parities.items())
        raise UserError(f"{path}: meta: no field {marks}: expected a fixture of one of them")
    return found[0].verify(path, fixture, meta)


def read(path: str) -> tuple[Arrays, dict]:
    """Arrays and `meta` of a fixture. Raises UserError."""
    fixture = files.read_npz(path, "a fixture (.npz)")
    try:
        return fixture, dict(json.loads(str(fixture["meta"])))
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path}: no `meta` in it: expected the configuration as JSON") from None


def start() -> None:
    cli.run(main, positional="fixtures")

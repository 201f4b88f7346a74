"""`python -m oa_jax verify FIXTURE.npz …`: our model against values of the official code.

A fixture of ABXI or LLM4CDSR, known by its `meta`; what is in it: `backbones/parity.py`. Errors are
relative to the largest absolute value of the expected array.
"""

from absl import flags

from oa_jax.backbones import known, parity
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
        header = ["quantity", "arrays", "largest relative error"]
        rows = [[name, str(count), f"{error:.2e}"] for name, (count, error) in errors.items()]
        Sheet(str(path), header, rows).show(cli.console)
        worst = max(worst, *(error for _, error in errors.values()))
    tolerance = flags.FLAGS.tolerance
    passed = worst <= tolerance
    sign = "<=" if passed else ">"
    cli.say(f"{'passed' if passed else 'FAILED'}: largest error {worst:.2e} {sign} {tolerance:g}")
    return 0 if passed else 1


def verify(path: str) -> parity.Errors:
    """How far we are from one fixture. Raises UserError when it cannot be read or lacks a thing."""
    arrays, meta = parity.read(path)
    kinds = {name: one.Fixture for name, one in known.having("parity").items()}
    found = [kind for kind in kinds.values() if kind.mark in meta]
    if not found:
        marks = " or ".join(f"{kind.mark!r} ({name})" for name, kind in kinds.items())
        raise UserError(f"{path}: meta: no field {marks}: expected a fixture of one of them")
    return found[0](path, arrays, meta).errors()

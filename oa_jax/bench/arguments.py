"""What the flags of the benchmark stand for."""

from __future__ import annotations

from oa_jax.config import Config, value_of
from oa_jax.errors import UserError


def variants(config: Config, text: str | None) -> dict[str, Config]:
    """{value: configuration} of --vary=FIELD=VALUE,VALUE; without it, {"": config}."""
    if not text:
        return {"": config}
    field, _, values = text.partition("=")
    try:
        kind = type(value_of(config, field))
    except AttributeError:
        kind = None
    if kind not in (int, float, str):
        raise UserError(f"--vary={text}: expected FIELD=VALUE,… of a field with a value")
    out = {}
    for value in values.split(","):
        try:
            out[value] = config.replace(**{field: kind(value)})
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise UserError(f"--vary={text}: {value!r}: expected {expected}") from None
    return out


def counts(name: str, words: list[str]) -> list[int]:
    """Ascending positive numbers of a flag. Raises UserError naming it."""
    if not words or not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--{name}={','.join(words)}: expected numbers such as 1,2,5")
    return sorted({int(word) for word in words})

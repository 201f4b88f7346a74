"""In which fields the configurations of runs differ, and which of these follow from others."""

import json
from collections import Counter
from typing import Any

from oa_jax.configuration import Config, fields_of

# Fields of a configuration that change neither what is learnt nor what is measured.
NOT_OF_THE_MODEL = {name for name, one in fields_of(Config) if one.metadata.get("free")}
NOT_OF_THE_MODEL |= {"seeds", "first_seed", "train.softmax", "train.probe_users", "model.attention"}


def of_the_model(config: dict) -> dict[str, str]:
    """{dotted field: value, as JSON} of a whole configuration but for `NOT_OF_THE_MODEL`."""
    return {name: value for name, value in _leaves(config) if name not in NOT_OF_THE_MODEL}


def _leaves(node, name=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(node)


def differing_fields(runs: list[Any]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """({dotted field: its value, as JSON, of each run} of fields in which these runs differ,
    {field: the value that most of them have}). A field that neither a `Run` nor today's version
    has is taken to be that value."""
    of, values, usual = [run.fields for run in runs], {}, {}
    for field in dict.fromkeys(field for fields in of for field in fields):
        counts = Counter(fields[field] for fields in of if field in fields)
        if len(counts) > 1:
            usual[field] = counts.most_common(1)[0][0]
            values[field] = [fields.get(field, usual[field]) for fields in of]
    return values, usual


def follows(values: list, others: list) -> bool:
    """Whether runs that are alike in the one of `others` are alike in that of `values`, too."""
    return len(set(zip(others, values, strict=True))) == len(set(others))


def few(names: list[str], most: int = 4) -> str:
    """Names, the first of them where they are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def in_words(field: str, value: str) -> str:
    """`gate_act=tanh` of a dotted field and a value as JSON."""
    return f"{field.rpartition('.')[2]}={json.loads(value)}"

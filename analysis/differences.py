"""In which fields the configurations of runs differ, and which of these follow from others."""

from __future__ import annotations

import json
from collections import Counter

from .runs import Run


def fields_of(run: Run) -> dict[str, str]:
    """{dotted field: value, as JSON} of everything that makes the configuration."""

    def leaves(node, name):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, f"{name}.{key}" if name else key)
        else:
            yield name, json.dumps(node)

    return dict(leaves(json.loads(run.configuration), ""))


def differing_fields(runs: list[Run]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """({dotted field: its value, as JSON, of each run} of fields in which these runs differ,
    {field: the value that most of them have}). What an older version did not know is taken to be
    that value."""
    of, values, usual = [fields_of(run) for run in runs], {}, {}
    for field in dict.fromkeys(field for fields in of for field in fields):
        counts = Counter(fields[field] for fields in of if field in fields)
        if len(counts) > 1:
            usual[field] = counts.most_common(1)[0][0]
            values[field] = [fields.get(field, usual[field]) for fields in of]
    return values, usual


def follows(values: list, others: list) -> bool:
    """Whether runs that are alike in the one of `others` are alike in that of `values`, too."""
    return len(set(zip(others, values, strict=True))) == len(set(others))


def in_words(field: str, value: str) -> str:
    """`gate_act=tanh` of a dotted field and a value as JSON."""
    return f"{field.rpartition('.')[2]}={json.loads(value)}"

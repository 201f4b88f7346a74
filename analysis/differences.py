"""In which fields the configurations of runs differ, and which of these follow from others."""

import functools
import json
from collections import Counter

from oa_jax.backbones import known
from oa_jax.errors import UserError

from .runs import NOT_OF_THE_MODEL, Run


def fields_of(run: Run) -> dict[str, str]:
    """{dotted field: value, as JSON} of everything that makes the configuration; what an older
    version did not know has the default of today, which keeps what the code did before."""
    defaults = _defaults(run.config["backbone"], run.config.get("protocol", "official"))
    return defaults | dict(_leaves(json.loads(run.configuration)))


@functools.cache
def _defaults(backbone, protocol):
    try:
        of = known.resolve({"backbone": backbone, "protocol": protocol})
    except UserError:  # not of today
        return {}
    return {k: v for k, v in _leaves(of.to_dict()) if k not in NOT_OF_THE_MODEL}


def _leaves(node, name=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(node)


def differing_fields(runs: list[Run]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """({dotted field: its value, as JSON, of each run} of fields in which these runs differ,
    {field: the value that most of them have}). A field that neither a run nor today's version
    has is taken to be that value."""
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

"""The table of a sweep: a row for each run and seed, with its fields, metrics and angles."""

import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from oa_jax import files
from oa_jax.configuration import Config, fields_of, value_of
from oa_jax.sheets import Sheet


def write(out: pathlib.Path, runs: Mapping[str, Config]) -> None:
    """Write out/index.csv and, where polars is installed, out/index.parquet.

    Columns: run, seed, status; the configuration's fields that are not the same in all runs,
    dotted; n_parameters; what summary.json has of each seed.
    """
    found = rows(out, runs)
    columns = list(dict.fromkeys(name for row in found for name in row))
    cells = [[row.get(name) for name in columns] for row in found]
    files.write(out / "index.csv", Sheet("", columns, cells).csv())
    try:
        import polars as pl
    except ImportError:
        return
    table = io.BytesIO()
    pl.DataFrame(found, infer_schema_length=None).write_parquet(table)
    files.write(out / "index.parquet", table.getvalue())


def rows(out: pathlib.Path, runs: Mapping[str, Config]) -> list[dict[str, Any]]:
    """A row for each run and seed, in the order of the study."""
    fields = varying(runs)
    found = []
    for name, config in runs.items():
        about = {field: _plain(config, field) for field in fields}
        summary, status = _state(out / name)
        entries = {entry["seed"]: entry for entry in summary.get("per_seed", [])}
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            entry = entries.get(seed, {})
            of_seed = "diverged" if entry.get("diverged_step") else status
            row = {"run": name, "seed": seed, "status": of_seed} | about
            found.append(row | {"n_parameters": summary.get("n_parameters")} | entry)
    return found


def varying(runs: Mapping[str, Config]) -> list[str]:
    """Dotted fields whose value is not the same in all runs, seeds aside."""
    names = dict.fromkeys(name for c in runs.values() for name, _ in fields_of(type(c)))
    values = {name: {json.dumps(_plain(c, name)) for c in runs.values()} for name in names}
    return [n for n, of in values.items() if len(of) > 1 and n not in ("seeds", "first_seed")]


def _plain(config, field):
    try:
        value = value_of(config, field)
    except AttributeError:  # another backbone's
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else value


def _state(path):
    if (path / "summary.json").exists():
        summary = files.read_json(path / "summary.json", "the summary of a run")
        return summary, summary.get("stopped", "finished")
    if (path / "failed.json").exists():
        return {}, "failed"
    return {}, "running" if (path / "config.json").exists() else "waiting"


def score_of(values: Mapping[str, float | None], ranking: str | None) -> float:
    """Mean over domains of the validation NDCG@10, of a summary's means or a seed's entry; -1
    without any. The metrics of a domain without users are None, or NaN.

    ranking: the one that training selects by, `watched` in a summary. None, of an older one: all
    sampled rankings that there are.
    """
    names = tuple(f"val/{domain}/ndcg@10/" for domain in "AB")
    found = {n: v for n, v in values.items() if n.startswith(names) and v is not None and v == v}
    if ranking:
        found = {n: v for n, v in found.items() if n.rpartition("/")[2] == ranking}
    sampled = [v for name, v in found.items() if "/full" not in name]
    return float(np.mean(sampled or list(found.values()))) if found else -1.0


def in_words(summary: Mapping) -> str:
    """The test metrics of a run in a few words."""
    found = {domain: summary["mean"].get(f"test/{domain}/ndcg@10/full") for domain in "AB"}
    parts = [f"{domain} {value:.4f}" for domain, value in found.items() if value is not None]
    bad = [str(entry["seed"]) for entry in summary["per_seed"] if entry["diverged_step"]]
    words = [f"test ndcg@10 among all items {', '.join(parts)}"] if parts else []
    return "; ".join(words + ([f"diverged: seeds {', '.join(bad)}"] if bad else []))

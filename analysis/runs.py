"""Runs as the analysis sees them: what a workdir holds, read only, problems as sentences.

    runs, left_out = find_runs("runs/a,runs/b*")
    runs[0].config["gca"]["positions"], runs[0].epochs(), runs[0].ranks()

Nothing here takes the workdir's lock or writes into it, so a run that is still training can be
looked at. Nothing here imports JAX, so that tables of summaries are there at once.
"""

import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import polars as pl

from oa_jax import api, files
from oa_jax.backbones import known
from oa_jax.errors import UserError
from oa_jax.fields import LARGEST, is_int
from oa_jax.nn.known import changed

from .differences import few, of_the_model

# Fields of GCA that make another arm of an experiment, beside the fusion, its part and λ.
ARMS = ("source", "window", "own_item", "width", "gate", "residual", "layer_norm", "pool")
ARMS += ("latents", "experts")
WHOLE = ("seed", "epochs", "best_epoch")  # integers that every seed's summary has


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A workdir. `config`: config.json, checked, with every field of today. `summary` is None until
    the run has finished; `problems` say what is amiss."""

    path: pathlib.Path
    name: str
    config: dict
    env: dict
    summary: dict | None
    problems: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """Where GCA stands; () is the baseline."""
        return tuple(self.config["gca"]["positions"])

    @property
    def gca(self) -> dict:
        return self.config["gca"]

    @property
    def part(self) -> str:
        """What training used of X': full | parallel | orthogonal | split."""
        return self.gca["part"]

    @property
    def gate(self) -> str:
        """Activation of GCA's gate, or the other fusion; runs of different ones are never pooled
        where X' counts."""
        return self.gca["gate_act" if self.gca["fusion"] == "gca" else "fusion"]

    @property
    def width(self) -> int:
        return self.config["model"]["d_embed"]

    @property
    def numbers(self) -> set[int]:
        """The numbers of its seeds."""
        first = self.config["first_seed"]
        return set(range(first, first + self.config["seeds"]))

    @property
    def digest(self) -> str:
        """Tells runs of one name apart, and states of a run: of configuration, data, seeds, and
        the epochs that the seeds of a finished run are best in."""
        best = [entry.get("best_epoch") for entry in (self.summary or {}).get("per_seed", ())]
        text = f"{self.configuration} {self.data} {self.fingerprint} {sorted(self.numbers)} {best}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        return str(self.env["fingerprints"].get("data", "?"))

    @property
    def data(self) -> str:
        """What it was trained on and ranked among, beside the sampled candidates: events, text
        tables, and what of users and ties is not as usual."""
        tables, users = self.env["fingerprints"].get("tables"), self.config["evaluate"]
        text = f"data {self.fingerprint[:8]}" + (f"+{tables[:8]}" if tables else "")
        if n := users["users_per_kind"]:
            text += f", {n} users of a kind"
        ties = [v for name, v in self.config["quirks"].items() if "ties" in name]
        if any(v != (self.config["protocol"] == "official") for v in ties):
            text += ", other ties"
        return text

    @property
    def placement(self) -> str:
        """`baseline`, `early`, `stack`, as configs/ have these words; or `GCA[1]`, `GCA[1,2]`."""
        name = {(): "baseline", (0,): "early", (0, 1): "stack"}.get(self.places)
        return name or f"GCA[{','.join(map(str, self.places))}]"

    @property
    def arms(self) -> list[str]:
        """What is unusual about the module, but for part and λ: another fusion, `source=self`."""
        fusion, unusual = self.gca["fusion"], changed(self.gca)
        return [fusion] * (fusion != "gca") + [o for o in unusual if o.split("=")[0] in ARMS]

    @property
    def variant(self) -> str:
        """The placement, and what is unusual about the update: `early, parallel part, λ=0.1`."""
        weight = self.gca["ortho_weight"]
        of = " of α ⊙ X′" if self.gca["part_of"] == "gated" else ""
        more = [*self.arms, *[f"{self.part} part{of}"] * (self.part != "full")]
        more += [f"λ={weight:g}{of}"] * bool(weight)
        return ", ".join([self.placement, *(more if self.places else [])])

    @functools.cached_property
    def fields(self) -> dict[str, str]:
        """{dotted field: value, as JSON} of everything but seeds, folders and block sizes."""
        return of_the_model(self.config)

    @property
    def configuration(self) -> str:
        """Equal for runs that differ in nothing but seeds, folders and block sizes."""
        return json.dumps(self.fields, sort_keys=True)

    @property
    def backbone_configuration(self) -> str:
        """The same without the group `gca`: equal for a baseline and its GCA variants."""
        alone = known.parts(known.resolve(self.config)).without_fusion if self.places else {}
        plain = self.fields | {name: json.dumps(value) for name, value in alone.items()}
        return json.dumps({k: plain[k] for k in plain if not k.startswith("gca.")}, sort_keys=True)

    @property
    def setting(self) -> str:
        """Backbone, data and protocol: what runs must share for their numbers to be compared."""
        data, by = self.config["data"], self.config["data"]["split"]
        text = f"{self.config['backbone']} · {data['name']} · {self.config['protocol']}"
        split = {"leave_one_out": "", "global_time": " · by time"}.get(by, f" · {by}")
        return f"{text} · {self.candidates}{split} · {self.data}"

    @property
    def candidates(self) -> str:
        """Name of the sampled ranking, such as uni999."""
        return f"uni{self.config['evaluate']['n_negatives']}"

    def full_name(self, metric: str) -> str:
        """A metric with its ranking, by default the sampled one: `ndcg@10/uni999`."""
        return metric if "/" in metric else f"{metric}/{self.candidates}"

    @property
    def measures(self) -> list[tuple[str, str]]:
        """(metric, ranking) of everything that domain A was measured by."""
        found = [name.split("/") for name in self.seeds().columns if name.startswith("test/A/")]
        return [tuple(parts[2:]) for parts in found if len(parts) == 4]

    @property
    def tie_weight(self) -> float:
        """0: a target comes first among equal scores (official ABXI); 0.5: in their middle."""
        return known.parts(known.resolve(self.config)).tie_weight

    @functools.cached_property  # every run is asked for by every other
    def ranked_by(self) -> tuple[str | None, float]:
        """Candidates of the test users, and the share of equal scores that counts as better."""
        return self.env["fingerprints"].get("candidates_test"), self.tie_weight

    def seeds(self) -> pl.DataFrame:
        """A row per seed that ended well: run, seed, epochs, best_epoch, every metric.

        What is no number becomes null. |mean cos|, `cos_abs`, is filled in from `cos` where it
        lacks. Empty for an unfinished run.
        """
        rows = [e for e in (self.summary or {}).get("per_seed", ()) if not e.get("diverged_step")]
        frame = _frame(rows, WHOLE)
        signed = [n for n in frame.columns if n.endswith(("/cos", "/gated_cos", "/xy_cos"))]
        missing = {f"{n}_abs": pl.col(n).abs() for n in signed if f"{n}_abs" not in frame.columns}
        return frame.with_columns(run=pl.lit(self.name), **missing).select("run", pl.exclude("run"))

    def epochs(self) -> pl.DataFrame:
        """metrics.jsonl: a row per (epoch, seed), sorted; other lines are left out."""
        rows = {(row["epoch"], row["seed"]): row for row in _rows(self.path)[0]}
        frame = _frame(rows.values(), ("epoch", "seed", "best_epoch", "diverged_step"))
        return frame if frame.is_empty() else frame.sort("epoch", "seed")

    @functools.cache  # noqa: B019 (runs live as long as the command)
    def ranks(self) -> dict[str, np.ndarray]:
        """Arrays of ranks.npz (see `oa_jax.evaluation`). Raises UserError without a whole file."""
        return files.read_npz(self.path / "ranks.npz", "the ranks of a finished run")


def find_runs(spec: str | os.PathLike | api.Run | Sequence) -> tuple[list[Run], list[str]]:
    """Runs of `DIR[,DIR…]|GLOB`, and a sentence for each folder that had to be left out.

    spec: that text, a path, a run of `oa.open`, or a list of these. A folder is a workdir, or holds
    workdirs; its name may hold commas. Sorted by path, each once; a run whose seeds are all in
    another that is the same but for `NOT_OF_THE_MODEL` is left out. Raises UserError without any.
    """
    folders: dict[pathlib.Path, None] = {}
    expected = "expected a workdir of `oa_jax train`, or a folder of workdirs"
    for one in spec if isinstance(spec, list | tuple) else [spec]:
        for path in _named(one, expected):
            inside = [path] if _is_workdir(path) else sorted(path.iterdir())
            folders |= dict.fromkeys(filter(_is_workdir, inside))
    if not folders:
        raise UserError(f"--runs={spec}: no run found: {expected}")
    runs, left_out = [], []
    for path, name in _names(sorted(folders)).items():
        try:
            runs.append(read_run(path, name))
        except UserError as error:
            left_out.append(f"{error}: the run is left out")
    for first, run, both in _overlaps(runs):
        if both == run.numbers and first in runs and run in runs:
            runs.remove(run)
            twin = f"the configuration, data and seeds of {first.name}"
            left_out.append(f"{run.name}: {twin}: the run is left out")
    if not runs:
        raise UserError(f"--runs={spec}: no readable run: {left_out[0]}")
    return runs, left_out


def _named(spec, expected):
    """The folders of one `spec` of `find_runs`."""
    text = spec if isinstance(spec, str) else str(_path(spec))
    parts = [p for p in text.split(",") if p.strip()]
    while parts:
        for size in range(len(parts), 0, -1):  # the longest name that there is
            if found := _folders(",".join(parts[:size]).strip()):
                break
        else:
            raise UserError(f"--runs: {parts[0].strip()}: no such folder: {expected}")
        parts = parts[size:]
        yield from found


def _path(given):
    return files.local(getattr(given, "path", given), "--runs")


def _overlaps(runs):
    """(one with as many seeds or more, another, the seeds in both) of runs that are the same but
    for seeds, folders and block sizes."""
    kinds = {run: (run.configuration, run.data, run.summary is None) for run in runs}
    largest_first = sorted(runs, key=lambda run: -len(run.numbers))
    for one, other in itertools.combinations(largest_first, 2):
        both = one.numbers & other.numbers
        if both and kinds[one] == kinds[other]:
            yield one, other, both


def _folders(pattern):
    path = files.local(pattern, "--runs")
    paths = [path] if path.is_dir() else map(pathlib.Path, sorted(glob.glob(str(path))))
    return [path for path in paths if path.is_dir()]


def read_run(path: str | os.PathLike | api.Run, name: str | None = None) -> Run:
    """The run in a workdir. Raises UserError when its configuration or fingerprints are none."""
    path = _path(path)
    values = files.read_json(path / "config.json", "the workdir of a run")
    try:
        config = known.resolve(values).to_dict()
    except UserError as error:
        raise UserError(f"{path / 'config.json'}: {error}") from None
    problems, name, env, summary = [], name or path.name, {}, None
    try:
        env = files.read_json(path / "env.json", "one of a run")
    except UserError as error:
        problems.append(str(error))
    for group in ("fingerprints", "packages"):
        env[group] = env[group] if isinstance(env.get(group), dict) else {}
    for field, value in env["fingerprints"].items():
        if not isinstance(value, str):
            where = f"{path / 'env.json'}: fingerprints.{field}"
            raise UserError(f"{where}: found {value!r}, expected text")
    try:
        summary = _summary(path / "summary.json", name, config, problems)
    except UserError as error:
        problems.append(str(error))
    if n_bad := _rows(path)[1]:
        expected = "expected JSON objects with epoch and seed"
        problems.append(f"{path / 'metrics.jsonl'}: {n_bad} unreadable, left out: {expected}")
    return Run(path, name, config, env, summary, tuple(problems))


def finished(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.summary]


def notes(runs: list[Run]) -> list[str]:
    """Everything to know before comparing: the problems of each run, and how runs differ."""
    out = [problem for run in runs for problem in run.problems]
    for one, other, both in _overlaps(finished(runs)):
        twice = ", ".join(map(str, sorted(both)))
        out.append(f"{one.name} and {other.name}: one configuration: seeds {twice} count twice")
    versions = {
        "code versions": [str(run.env.get("commit") or "unknown") for run in runs],
        "jax versions": [str(run.env["packages"].get("jax", "unknown")) for run in runs],
    }
    for what, of_runs in versions.items():
        names = {v: [r.name for r, w in zip(runs, of_runs, strict=True) if v == w] for v in of_runs}
        parts = [f"{version} ({few(of_it)})" for version, of_it in names.items()]
        out += [f"runs of different {what}: {'; '.join(parts)}"] if len(parts) > 1 else []
    return out


def check_metric(metric: str, runs: list[Run]) -> None:
    """Raise UserError for a --metric that no finished run has, naming those that there are."""
    found = [measure for run in finished(runs) for measure in run.measures]
    names = list(dict.fromkeys(name for name, _ in found))
    if found and metric not in {*names, *map("/".join, found)}:
        known = ", ".join(names)
        example = f"one of them with its ranking, such as {'/'.join(found[-1])}"
        raise UserError(f"--metric={metric}: no such metric: expected {known}, or {example}")


def _summary(path, name, config, problems):
    """A usable summary; what it lacks goes to `problems`. Raises UserError where there is none."""
    if not path.exists():
        last = max((row["epoch"] for row in _rows(path.parent)[0]), default=-1)
        seen = f"{last} epochs so far" if last >= 0 else "no epoch yet"
        raise UserError(f"{name}: unfinished (no summary.json, {seen}): left out of final metrics")
    summary = files.read_json(path, "one of a run")
    if why := summary.get("stopped"):
        raise UserError(f"{name}: {why} by its search: left out of final metrics")
    entries, n_parameters = summary.get("per_seed"), summary.get("n_parameters")
    whole = isinstance(entries, list) and all(
        isinstance(entry, dict)
        and all(is_int(n := entry.get(name)) and abs(n) <= LARGEST for name in WHOLE)
        for entry in entries
    )
    if not whole or len({entry["seed"] for entry in entries}) < len(entries):
        raise UserError(f"{path}: no usable `per_seed`: expected each seed once")
    if not is_int(n_parameters) or not 0 < n_parameters < 2**63:
        found = f"n_parameters: found {n_parameters!r}, expected a whole number of at least 1"
        raise UserError(f"{path}: {found}")
    if bad := [str(e["seed"]) for e in entries if e.get("diverged_step")]:
        problems.append(f"{name}: seed {', '.join(bad)} diverged: left out")
    gated = any(name.endswith("/gated_abs_cos") for entry in entries for name in entry)
    if config["gca"]["positions"] and entries and not gated:
        until = "left out where it counts until `orthogonality` has measured it"
        problems.append(f"{name}: of an older version, without the angle of α ⊙ X′: {until}")
    if config["seeds"] > len(entries):
        problems.append(f"{name}: {len(entries)} of {config['seeds']} seeds in summary.json")
    return summary


def _rows(path):
    """Rows of metrics.jsonl, and how many lines are none. A last one cut by a kill is no fault."""
    try:
        text = (path / "metrics.jsonl").read_text("utf-8", errors="replace")
    except OSError:
        return [], 0
    good, lines = [], text.split("\n")
    for line in lines[:-1]:  # a whole line ends with a newline
        try:
            row = json.loads(line)
            if {type(row[key]) for key in ("epoch", "seed")} == {int}:
                good.append(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return good, sum(1 for line in lines[:-1] if line.strip()) - len(good)


def _frame(rows, whole):
    """Columns of numbers, null where there is none; those named `whole` are integers."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = {n: pl.Series(n, [_number(row.get(n)) for row in rows], pl.Float64) for n in names}
    return pl.DataFrame(values).cast({name: pl.Int64 for name in whole if name in names})


def _is_workdir(path):
    return any((path / name).exists() for name in ("config.json", "metrics.jsonl", "summary.json"))


def _names(paths):
    """The folder's name, with as many of its parents as make it the only one of that name."""
    unique, out = {}, {}
    for path in paths:
        unique.setdefault(path.resolve(), path)
    for full, path in unique.items():
        ends = (full.parts[-n:] for n in itertools.count(1))
        alone = next(e for e in ends if sum(o.parts[-len(e) :] == e for o in unique) == 1)
        out[path] = "/".join(alone)
    return out


def _number(value):
    """A finite float, or None."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good and math.isfinite(value) else None

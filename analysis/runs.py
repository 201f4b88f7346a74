"""Runs as the analysis sees them: what a workdir holds, read only, problems as sentences.

    runs, left_out = find_runs("runs/a,runs/b*")
    runs[0].config["gca"]["positions"], runs[0].epochs(), runs[0].ranks()

Nothing here takes the workdir's lock or writes into it, so a run that is still training can be
looked at.
"""

from __future__ import annotations

import copy
import dataclasses
import glob
import json
import math
import pathlib
import zipfile

import numpy as np
import polars as pl

from oa_jax.backbones.known import BACKBONES
from oa_jax.errors import UserError

# Fields of a configuration that change neither what is learnt nor what is measured.
NOT_OF_THE_MODEL = {
    "": ("seeds", "first_seed", "seed_axis", "mesh"),
    "data": ("dir",),
    "train": (
        *("block_positions", "checkpoint_every", "keep_checkpoints", "compaction"),
        *("tensorboard", "probe_users"),
    ),
    "evaluate": ("block_users", "block_items"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A workdir. `summary` is None until the run has finished; `problems` say what is amiss."""

    path: pathlib.Path
    name: str
    config: dict
    env: dict
    summary: dict | None
    problems: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        return self.summary is not None

    @property
    def state(self) -> str:
        return "finished" if self.is_finished else "unfinished"

    @property
    def places(self) -> tuple[int, ...]:
        """Where GCA stands; () is the baseline."""
        return tuple(self.config["gca"]["positions"])

    @property
    def variant(self) -> str:
        """`baseline`, `early`, `stack` or `GCA[1]`, and what is unusual about its update."""
        gca = self.config["gca"]
        name = {(): "baseline", (0,): "early"}.get(self.places)
        name = name or ("stack" if len(self.places) > 1 else f"GCA[{self.places[0]}]")
        part = gca.get("part", gca.get("update", "full"))  # its older name
        if self.places and part != "full":
            name += f", {part} part"
        if self.places and gca.get("ortho_weight"):
            name += f", λ={gca['ortho_weight']:g}"
        return name

    @property
    def configuration(self) -> str:
        """Equal for runs that differ in nothing but seeds, folders and block sizes."""
        return _canonical(self.config)

    @property
    def backbone_configuration(self) -> str:
        """The same without the group `gca`: equal for a baseline and its GCA variants."""
        return _canonical({k: v for k, v in self.config.items() if k != "gca"})

    @property
    def setting(self) -> str:
        """Backbone, data and protocol: what runs must share for their numbers to be compared."""
        data, protocol = self.config["data"], self.config.get("protocol", "?")
        fingerprint = self.env.get("fingerprints", {}).get("data", "?")
        text = f"{self.config['backbone']} · {data['name']} · {protocol}"
        split = {"leave_one_out": "", "global_time": " · by time"}.get(data["split"])
        text += f" · {self.candidates}" + (f" · {data['split']}" if split is None else split)
        return f"{text} · data {fingerprint[:8]}"

    @property
    def candidates(self) -> str:
        """Name of the sampled ranking, such as uni999."""
        return f"uni{self.config['evaluate']['n_negatives']}"

    @property
    def rankings(self) -> list[str]:
        """Names of all rankings that the run was measured by."""
        found = [name.split("/") for name in self.seeds().columns]
        named = [p[3] for p in found if len(p) == 4 and p[:2] == ["test", "A"]]
        return list(dict.fromkeys(named))

    @property
    def tie_weight(self) -> float:
        """0: a target comes first among equal scores (official ABXI); 0.5: in their middle."""
        bundle = BACKBONES.get(self.config["backbone"])
        return bundle.tie_weight(self.config) if bundle else 0.5

    def seeds(self) -> pl.DataFrame:
        """A row per seed that ended well: run, seed, epochs, best_epoch, every metric.

        null and what is no number become null. Empty for an unfinished run.
        """
        rows = [e for e in (self.summary or {}).get("per_seed", ()) if not e.get("diverged_step")]
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [_number(row.get(name)) for row in rows] for name in names}
        frame = pl.DataFrame({k: pl.Series(k, v, pl.Float64) for k, v in columns.items()})
        frame = frame.with_columns(pl.lit(self.name).alias("run"))
        whole = [c for c in ("seed", "epochs", "best_epoch") if c in frame.columns]
        return frame.with_columns(pl.col(whole).cast(pl.Int64)).select(
            "run", pl.all().exclude("run")
        )

    def epochs(self) -> pl.DataFrame:
        """metrics.jsonl: a row per (epoch, seed), sorted; a line cut off by a kill is left out.

        Empty without the file.
        """
        rows = {}
        for line in _lines(self.path / "metrics.jsonl"):
            try:
                row = json.loads(line)
                rows[row["epoch"], row["seed"]] = row
            except (ValueError, TypeError, KeyError):
                continue
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        columns = {n: [_number(row.get(n)) for row in rows.values()] for n in names}
        frame = pl.DataFrame({k: pl.Series(k, v, pl.Float64) for k, v in columns.items()})
        if frame.is_empty():
            return frame
        whole = [c for c in ("epoch", "seed", "best_epoch", "diverged_step") if c in names]
        return frame.with_columns(pl.col(whole).cast(pl.Int64)).sort("epoch", "seed")

    def ranks(self) -> dict[str, np.ndarray]:
        """Arrays of ranks.npz (see oa_jax.runs.summary.rank_all).

        Raises UserError when the file is missing or damaged.
        """
        path = self.path / "ranks.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise UserError(f"{path}: no such file: expected the ranks of a finished run") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: damaged: {error}") from None


def find_runs(spec: str) -> tuple[list[Run], list[str]]:
    """Runs of `DIR[,DIR…]|GLOB`, and a sentence for each folder that had to be left out.

    A folder is a workdir, or holds workdirs. Sorted by path, each once. Raises UserError when
    there is none.
    """
    folders: dict[pathlib.Path, None] = {}
    for part in filter(None, (p.strip() for p in (spec or "").split(","))):
        for path in _matches(part):
            folders |= dict.fromkeys(_workdirs(path))
    if not folders:
        expected = "expected a workdir of oa_jax.train, or a folder of workdirs"
        raise UserError(f"--runs={spec or ''}: no run found: {expected}")
    runs, left_out = [], []
    for path, name in _names(sorted(folders)).items():
        try:
            runs.append(read_run(path, name))
        except UserError as error:
            left_out.append(str(error))
    if not runs:
        raise UserError(f"--runs={spec}: no readable run: {left_out[0]}")
    return runs, left_out


def read_run(path, name: str | None = None) -> Run:
    """The run in a workdir. Raises UserError when its configuration cannot be read."""
    path = pathlib.Path(path)
    config = _read_object(path / "config.json")
    for group, fields in _NEEDED.items():
        node = config.get(group) if group else config
        missing = [f for f in fields if not isinstance(node, dict) or f not in node]
        if missing:
            field = f"{group}.{missing[0]}" if group else missing[0]
            raise UserError(f"{path / 'config.json'}: no field {field!r}: expected one")
    problems, name = [], name or path.name
    env = _optional(path / "env.json", problems)
    if not isinstance(env.get("fingerprints", {}), dict):
        env = env | {"fingerprints": {}}
    summary = _summary(path, name, config, problems)
    return Run(path, name, config, env, summary, tuple(problems))


_NEEDED = {
    "": ("backbone", "gca", "model", "data", "train", "evaluate", "seeds"),
    "gca": ("positions",),
    "data": ("name", "split"),
    "evaluate": ("n_negatives",),
    "model": ("d_embed",),
}


def finished(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.is_finished]


def notes(runs: list[Run]) -> list[str]:
    """Everything to know before comparing: the problems of each run, and how runs differ."""
    out = [problem for run in runs for problem in run.problems]
    for what, of_run in (
        ("code versions", lambda run: run.env.get("commit") or "unknown"),
        ("jax versions", lambda run: (run.env.get("packages") or {}).get("jax", "unknown")),
    ):
        by_value: dict[str, list[str]] = {}
        for run in runs:
            by_value.setdefault(str(of_run(run)), []).append(run.name)
        if len(by_value) > 1:
            parts = [f"{value} ({', '.join(names)})" for value, names in by_value.items()]
            out.append(f"runs of different {what}: " + "; ".join(parts))
    return out


def _summary(path, name, config, problems):
    """The summary if it is whole; what is missing goes to `problems`."""
    if not (path / "summary.json").exists():
        last = max((_epoch(line) for line in _lines(path / "metrics.jsonl")), default=-1)
        seen = f"{last} epochs so far" if last >= 0 else "no epoch yet"
        problems.append(f"{name}: unfinished (no summary.json, {seen}): left out of final metrics")
        return None
    summary = _optional(path / "summary.json", problems)
    entries = summary.get("per_seed")
    whole = isinstance(entries, list) and all(_is_entry(entry) for entry in entries)
    if not whole or _number(summary.get("n_parameters")) is None:
        if summary:
            problems.append(f"{path / 'summary.json'}: no usable `per_seed` and `n_parameters`")
        return None
    bad = [str(e["seed"]) for e in entries if e.get("diverged_step")]
    if bad:
        problems.append(f"{name}: seed {', '.join(bad)} diverged: left out")
    missing = config["seeds"] - len(entries)
    if missing > 0:
        problems.append(f"{name}: {len(entries)} of {config['seeds']} seeds in summary.json")
    return summary


def _is_entry(entry):
    fields = ("seed", "epochs", "best_epoch")
    return isinstance(entry, dict) and all(_number(entry.get(f)) is not None for f in fields)


def _canonical(config):
    plain = copy.deepcopy(config)
    for group, fields in NOT_OF_THE_MODEL.items():
        node = plain.get(group, {}) if group else plain
        for field in fields:
            node.pop(field, None)
    return json.dumps(plain, sort_keys=True)


def _matches(part):
    path = pathlib.Path(part).expanduser()
    if path.is_dir():
        return [path]
    found = [pathlib.Path(p) for p in sorted(glob.glob(str(path))) if pathlib.Path(p).is_dir()]
    if not found:
        raise UserError(f"--runs: {part}: no such folder: expected a workdir or a folder of them")
    return found


def _workdirs(path):
    if _is_workdir(path):
        return [path]
    return [child for child in sorted(path.iterdir()) if child.is_dir() and _is_workdir(child)]


def _is_workdir(path):
    return any((path / name).exists() for name in ("config.json", "metrics.jsonl", "summary.json"))


def _names(paths):
    """The folder's name, with as many of its parents as make it the only one of that name."""
    resolved = {path: path.resolve() for path in paths}
    unique = {full: path for path, full in reversed(resolved.items())}
    out, depth = {}, 1
    while len(out) < len(unique):
        names = {path: "/".join(full.parts[-depth:]) for full, path in unique.items()}
        for path, name in names.items():
            if list(names.values()).count(name) == 1:
                out.setdefault(path, name)
        depth += 1
    return {path: out[path] for path in paths if path in out}


def _read_object(path):
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: expected the workdir of a run") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON: {error}: the run is left out") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no object: expected a JSON object: the run is left out")
    return value


def _optional(path, problems):
    try:
        return _read_object(path)
    except UserError as error:
        problems.append(str(error).removesuffix(": the run is left out"))
        return {}


def _lines(path):
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _epoch(line):
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, TypeError, KeyError):
        return -1


def _number(value):
    """A finite float, or None."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good and math.isfinite(value) else None

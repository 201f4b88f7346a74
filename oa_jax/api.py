"""What a notebook calls: train, look at the results, ask the trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.configuration import Config, merged
from oa_jax.data import sources
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog, check_log
from oa_jax.events.world import World
from oa_jax.fields import checked, plain, whole
from oa_jax.files import local, read_json, read_npz

if TYPE_CHECKING:
    import polars as pl

    from oa_jax.experiment import Experiment
    from oa_jax.nn.fusion import Probe

ARGUMENTS = ("pair", "gca", "size", "runlocal", "np", "stream")  # of the files in configs/


def config(backbone: str = "abxi", **changes: Any) -> Config:
    """A checked configuration: configs/BACKBONE.py with some of its fields changed.

    backbone: abxi, llm4cdsr, cdsrnp or sasrec.
    changes: arguments of the file (`pair="synthetic"`, `gca="early"` or `(0, 1)`,
        `size="small"`, `runlocal=True`), fields (`seeds=3`), fields of groups
        (`train={"max_epochs": 5}`), or dotted names (`**{"train.max_epochs": 5}`).
        configs/FIELDS.md lists them all.

    Raises UserError naming what is not a field, or has another value than expected.
    """
    presets.choice("backbone", backbone, known.NAMES)
    text, fields = [], {}
    for name, value in changes.items():
        if name in ARGUMENTS and not isinstance(value, Mapping):  # `gca` is a group as well
            value = plain(value)
            if isinstance(value, tuple):  # places
                value = "-".join(map(str, value)) or "none"
            text.append(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
        else:
            fields[name] = value
    values = presets.load(f"configs/{backbone}.py:{','.join(text)}").to_dict()
    return known.resolve(merged(values, fields))


def read_events(
    files: Any,
    name: str = "events",
    directory: str | os.PathLike | None = None,
    say: Callable[[str], None] | None = print,
    **options: Any,
) -> InteractionLog:
    """The events of your own files or frames, as `python -m oa_jax data import` reads them.

    files: one or more paths, each a path or "DOMAIN=path", of CSV or other text, JSON lines or
        Parquet, plain or packed; or a frame of pandas or polars, or a dictionary of columns; or
        {domain: path or frame}. `oa_jax/data/README.md` says what is told apart.
    name: of the events. directory: keep them there as a prepared set of that name, with the raw
        ids and titles, which later runs find by it; None keeps nothing.
    say: gets a line for each thing that was taken for something or left out; None says nothing.
    options: `user`, `item`, `time`, `rating`, `domain`, `title`: names of columns; `columns`,
        `delimiter`, `domains`, `time_unit`, `shared_items`, `filters`, `bad_rows`.

    Raises UserError naming file, line, column, what was found and what was expected.
    """
    from oa_jax.data import own, sources, store
    from oa_jax.data.texts import Reading

    sources.check_own_name(name, "name")

    for field in options:
        presets.choice("option", field, [one.name for one in dataclasses.fields(own.Options)])
    options = own.Options(**{field: plain(value) for field, value in options.items()})
    given, say = _given(files, name), say or (lambda line: None)
    if directory is not None:
        if local(directory, "directory").is_file():
            raise UserError(f"directory={directory}: a file: expected a folder")
        from oa_jax.data.prepare import prepare_own

        prepare_own(name, given, options, directory, Reading(), say)
        return store.load(directory, name).log
    built = own.read(given, options, Reading(), say)[0]
    log, _ = store.with_roles(vars(built), built.n_items, name)
    return dataclasses.replace(log, origin=built)


def _given(files, name):
    """Arguments of `own.read`: FILE, DOMAIN=FILE, or (domain or None, table)."""
    from oa_jax.data import tables

    def one(domain, found):
        if isinstance(found, str | os.PathLike):
            return f"{domain}={local(found, domain)}" if domain else local(found, "files")
        return domain, tables.of_frame(found, domain or name)

    if files is None:
        raise UserError("files=None: expected a path, or a frame")
    if isinstance(files, list | tuple) and all(isinstance(f, str | os.PathLike) for f in files):
        return [one(None, path) for path in files]
    whole = str | os.PathLike | Mapping  # a file, or all columns of a domain
    of_domains = isinstance(files, Mapping) and all(
        isinstance(of, whole) or hasattr(of, "columns") for of in files.values()
    )
    return [one(*pair) for pair in (files.items() if of_domains else [(None, files)])]


def train(
    config: Config,
    data: InteractionLog | World | None = None,
    workdir: str | os.PathLike = "runs/run",
    say: Callable[[str], None] | None = print,
    extend: bool = False,
) -> Run:
    """Train all seeds of a configuration, as one compiled program, and return the run.

    The workdir decides: an empty or new folder starts; a begun run goes on from its newest
    checkpoint, bit for bit; a finished one is returned as it is.

    data: events, or a synthetic world; by default what `config.data` names. Their name has to be
        `config.data.name`, as sizes depend on it: "synthetic", of a world.
    say: gets one line at a time, None says nothing. extend: a run may go on to more seeds or
        epochs.

    Raises UserError for whatever does not fit: another configuration or other data in the
    workdir, a configuration made for another pair, sizes that the data do not have. Raises
    Interrupted after SIGTERM or Ctrl-C, when the run is saved: the same call resumes it.
    """
    from oa_jax.runs.run import run

    config, log = known.resolve(config), data
    world = data if isinstance(data, World) else getattr(data, "origin", None)
    if not isinstance(world, World):
        world = None
    elif world is not data and world.log().fingerprint() != data.fingerprint():
        world = None  # its events were changed
    if data is not None:
        name = sources.SYNTHETIC if world else check_log("data", data).name
        if name != config.data.name:
            raise UserError(
                f"config.data.name={config.data.name}, but the events are those of {name}: "
                f"expected oa.config(…, pair={name!r})"
            )
    if world is not None:  # whose events any later reader can make again
        log, config = None, config.replace(data={"world": dataclasses.asdict(world)})
    run(config, workdir, say or (lambda line: None), log, extend)
    return Run(local(workdir), log)


def sweep(
    study: str | os.PathLike | Mapping[str, Config],
    out: str | os.PathLike,
    say: Callable[[str], None] | None = print,
    slots: int | None = None,
    keep: str = "last",
) -> dict[str, Run]:
    """Train the runs of a study as a stream through compiled programs -> its finished runs.

    study: {name: configuration}, each with its seeds, or a file such as
        "configs/studies/phase.py:runlocal".
    out: its folder; every run is a workdir in it, and index.csv has a row for each run and seed.
        The same call goes on where an earlier one was ended; several can share the folder.
    slots: seeds in a program at a time; by default what the device holds.
    keep: checkpoints of an ended run: "last", "best" or "none".

    Raises UserError when the folder holds another study. Failed runs are reported and not returned.
    """
    from oa_jax.runs import study as study_lib
    from oa_jax.runs.search import sweep_of
    from oa_jax.runs.sweep import KEEP

    is_file, out = isinstance(study, str | os.PathLike), local(out, "--out")
    runs = study_lib.load(os.fspath(study)) if is_file else study_lib.checked(study, "study")
    slots = slots if slots is None else checked("--slots", slots, whole(1, ""))
    sweep = sweep_of(
        runs, out, say or (lambda line: None), slots, presets.choice("--keep", keep, KEEP)
    )
    sweep.run()
    found = {name: Run(out / name) for name in sweep.runs}
    return {name: run for name, run in found.items() if run.is_finished}


def open(workdir: str | os.PathLike, data: InteractionLog | None = None) -> Run:
    """The run in a workdir, finished or not; nothing in it is changed.

    data: its events, where it was trained on events that are in no prepared set: all but the
        configuration, the summary, the history and the ranks needs them.
    Raises UserError when there is no run.
    """
    run = Run(local(workdir, "workdir"), data)
    read_json(run.path / "config.json", "the workdir of a run")
    return run


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on disk. `summary` and `ranks` need a finished one."""

    path: pathlib.Path
    data: InteractionLog | None = dataclasses.field(default=None, repr=False)

    @property
    def config(self) -> Config:
        """As it stands in the workdir: an extension changes it."""
        from oa_jax.runs.run import stored_config
        from oa_jax.runs.workdir import Workdir

        return stored_config(Workdir(self.path))

    @property
    def is_finished(self) -> bool:
        return (self.path / "summary.json").exists()

    @property
    def summary(self) -> dict:
        """summary.json: `mean`, `sd` and `per_seed` of every metric, names such as
        "test/A/ndcg@10/uni999" and "best/gca/0/A/abs_cos"."""
        return read_json(self.path / "summary.json", "a finished run")

    def history(self) -> list[dict]:
        """metrics.jsonl: a row for each epoch and seed, none before the first epoch has ended. A
        line cut off by a kill is left out."""
        path, rows = self.path / "metrics.jsonl", []
        text = path.read_text("utf-8", "replace") if path.exists() else ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def ranks(self, split: str = "test", ranking: str = "full") -> dict[str, Any]:
        """Ranks of a split's targets: `user`, `domain` (R,), 0 in A and 1 in B; `rank`, `ties`
        (S, R), 1 is the best; `n_candidates` (R,); `tie_weight`, a number. `user` is a place in
        `raw_users`; `oa.user_metrics` takes the last four.

        ranking: "full", among all items of the domain, or the name of a sampled one ("uni999").
        Raises UserError naming those that there are.
        """
        arrays, key = read_npz(self.path / "ranks.npz", "a finished run"), f"{split}/{ranking}"
        if f"{key}/rank" not in arrays:
            found = sorted(name[: -len("/rank")] for name in arrays if name.endswith("/rank"))
            raise UserError(f"{key}: no such ranking: expected one of {', '.join(found)}")
        out = {name: arrays[f"{split}/{name}"] for name in ("user", "domain")}
        out |= {name: arrays[f"{key}/{name}"] for name in ("rank", "ties", "n_candidates")}
        return out | {"tie_weight": known.parts(self.config).tie_weight}

    @property
    def raw_users(self) -> np.ndarray:
        """Raw ids of all users (U,), as text: `run.raw_users[ranks["user"]]`. Needs the data; a set
        without raw ids has numbers."""
        from oa_jax.runs import names

        return np.array(names.of(self.experiment.data.log).users)

    @property
    def experiment(self) -> Experiment:
        """Data, evaluation and programs of the run; made once for a configuration."""
        from oa_jax.runs.stored import experiment_of

        config, built = self.config, self._built
        if config not in built:
            built.clear()
            built[config] = experiment_of(self.path, self.data)
        return built[config]

    @functools.cached_property
    def _built(self) -> dict[Config, Experiment]:
        return {}

    def params(self, which: str = "best", seed: int | None = None) -> Any:
        """Parameters of one seed, a tree of NumPy arrays, from the newest checkpoint.

        which: "best" by validation, or "last". seed: its number, by default the first.
        Raises UserError when there is no checkpoint, or no such seed.
        """
        import jax

        from oa_jax.runs.stored import newest_parameters

        presets.choice("which", which, ("best", "last"))
        seeds = self.experiment.seeds.tolist()
        seed = seeds[0] if seed is None else seed
        if seed not in seeds:
            raise UserError(f"seed={seed}: expected one of {', '.join(map(str, seeds))}")
        params, _ = newest_parameters(self.path, self.experiment, which == "best")
        return jax.tree.map(lambda a: a[seeds.index(seed)], params)

    def recommend(
        self,
        histories: Any = None,
        k: int = 10,
        domain: str = "both",
        seed: int | None = None,
        ensemble: bool = False,
        keep_seen: bool = False,
        explain: bool = False,
        time_unit: str | None = None,
    ) -> pl.DataFrame:
        """The k best items of every user, as a frame: user, domain, rank, item, score; raw ids.

        histories: None for all users of the set; a list or column of raw ids of some; or events
        that the model has never seen, with columns user, item, time (and domain): a file, a frame
        or a dictionary.
        domain: "A", "B" or "both", all that the run was evaluated on.  seed: by default the first
        that has not diverged; ensemble: by the mean of all seeds' ranks.  keep_seen: items of the
        history may come again.  explain: adds `due_to_update`, a score less that without X', and
        `looked_at_PLACE`, the items that GCA attended to most.  time_unit: of times that are
        numbers: s, ms, us, ns or number; by default told by their size.

        Needs the extra `export`. `python -m oa_jax recommend` writes the lists of more users than
        the memory holds.

        Raises UserError where nothing is known of the users, or a score is not finite.
        """
        from oa_jax.serving import histories as of
        from oa_jax.serving import lists
        from oa_jax.serving.stored import StoredModel

        k = checked("--k", k, whole(10, ""))
        if isinstance(histories, str) and not local(histories).exists():
            expected = f"a file, or a list of ids such as [{histories!r}]"
            raise UserError(f"histories={histories}: no such file: expected {expected}")
        if hasattr(histories, "to_list"):  # a column of ids, of pandas or polars
            histories = histories.to_list()
        model = StoredModel(self.path, seed, ensemble, self.data)
        if histories is None or isinstance(histories, (list, tuple, np.ndarray)):
            ids = histories if histories is None else list(map(str, histories))
            asked = of.of_set(model.experiment.data.log, model.names, ids)
        else:
            asked = of.of_events(histories, model.names, time_unit)
        return lists.whole(model, asked, k, domain, keep_seen, explain)

    def export(
        self,
        out: str | os.PathLike,
        seed: int | None = None,
        licence: str = "unknown",
        data_licence: str = "unknown",
    ) -> pathlib.Path:
        """Write the best parameters of a seed, by default the first that has not diverged, as a
        folder `out`, new or empty, that `oa.load_export` reads -> its path.

        licence, data_licence: for the model card. Needs the extra `export`. Raises UserError when
        there is no such seed, or something stands in `out`.
        """
        from oa_jax.serving.exported import export

        return export(self.path, out, seed, licence, data_licence, data=self.data)

    def probe(
        self,
        split: str = "test",
        place: int = 0,
        domain: str = "A",
        seed: int | None = None,
        n_users: int = 256,
    ) -> Probe:
        """What the fusion of a domain at a place saw and did: X, X', Y, the gate, on the host.

        Tokens of the first `n_users` users of a split, (P, D), of the best parameters of a seed, by
        default the first; `real_P` says which count. Raises UserError where there is no such
        fusion.
        """
        import jax

        name, of = f"{place}/{domain}", self.experiment
        presets.choice("split", split, of.evaluation.rows)
        n_users = checked("n_users", n_users, whole(256, ""))
        rows = {k: v[:n_users] for k, v in of.evaluation.rows[split].items() if k != "seen"}
        backbone = of.engine.settings.on(of.tables).backbone
        with of.engine.settings.precision():
            probes = jax.jit(backbone.probe)(self.params("best", seed), rows)
        if name not in probes:
            found = ", ".join(probes) or "none: this is a baseline"
            raise UserError(f"{name}: no such fusion: expected one of {found}")
        return jax.device_get(probes[name])

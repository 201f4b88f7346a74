"""One run from configuration to summary.json: what the commands and the library call."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable
from typing import Any

import jax

import oa_jax
from oa_jax import experiment as experiment_lib
from oa_jax import files, processes
from oa_jax.backbones import known
from oa_jax.configuration import Config, first_difference, value_of
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.engine.state import State
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import OWN, OWN_MEANS
from oa_jax.experiment import Experiment
from oa_jax.runs import loop
from oa_jax.runs.checkpoint import can_go_on
from oa_jax.runs.summary import check_summary, rank_all, summarise
from oa_jax.runs.training import Clock, Training
from oa_jax.runs.workdir import Workdir

GROWING = ("seeds", "train.max_epochs")  # what `extend` allows to be more than it was
# Whose versions stand in env.json.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")
# What is said before it is silent for long.
COMPILING = "compiling: a minute or more where no earlier call has left its programs"
RANKING = "ranking all users of both splits"


def run(
    config: Any,
    workdir_path: str | pathlib.Path,
    say: Callable[[str], None],
    log: InteractionLog | None = None,
    extend: bool = False,
    watch: Callable[[Training, float], None] | None = None,
) -> dict:
    """Train `config` in a workdir and return its summary. The workdir decides: empty, start;
    begun, go on; finished, return what is there.

    config: of any source that `known.resolve` takes. log: events to use instead of its data's.
    extend: a begun or finished run goes on to more seeds or epochs.
    watch: gets the run and the seconds of each epoch, by default a line of it is said.
    """
    config = known.resolve(config)
    use_compilation_cache(say)  # before anything is compiled
    processes.check_equal("--config", config.to_dict())
    with Workdir(workdir_path) as workdir:
        grown = check_config(workdir, config, extend)
        if workdir.is_finished and not grown:
            if log is not None:
                check_same_data(workdir, {"data": log.fingerprint()})
            say(f"{workdir.path} is finished: nothing to do")
            return check_summary(workdir.path / "summary.json", workdir.read_json("summary.json"))
        experiment = experiment_lib.build(config, log)
        env = begin(experiment, workdir, extend)
        if grown:
            say(f"extended: {grown}")
        say(describe(experiment, env))
        with processes.Notice() as notice:
            say(COMPILING)
            states, seconds = loop.train(experiment, workdir, say, notice, watch)
            say(RANKING)
            # An extension has written its rows behind those that were there.
            epochs = processes.fetch(states.epoch).tolist()
            workdir.keep_rows(dict(zip(experiment.seeds.tolist(), epochs, strict=True)))
            summary = conclude(experiment, workdir, states, seconds, notice)
    say(f"results in {workdir.path}")
    return summary


def begin(experiment: Experiment, workdir: Workdir, extend: bool = False) -> dict:
    """Store configuration and env.json of a run that begins or goes on, once they are known to fit;
    -> env.json. Raises UserError where they don't."""
    grown = check_config(workdir, experiment.config, extend)  # by now its split is known
    env = environment(experiment)
    processes.check_equal("data", env["fingerprints"])
    if workdir.is_begun():
        check_same_data(workdir, env["fingerprints"])
    workdir.claim(experiment.config.to_dict(), reopen=bool(grown))
    workdir.write_json("env.json", env)
    return env


def environment(experiment: Experiment) -> dict:
    """env.json, what a result depends on beside its configuration: versions, devices, commit and
    fingerprints of data and candidates."""
    return {
        "oa-jax": oa_jax.__version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "platform_version": jax.devices()[0].client.platform_version,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "processes": jax.process_count(),
        "mesh": dict(experiment.engine.layout.mesh(len(experiment.seeds)).shape),
        "seed_axis": experiment.engine.axis,
        "commit": _commit(),
        "fingerprints": experiment.identity(),
    }


def _commit() -> str | None:
    """The source's commit, where the package runs from a checkout."""
    root = pathlib.Path(oa_jax.__file__).parent.parent
    try:
        of = f"--git-dir={root / '.git'}", f"--work-tree={root}"  # no repository further above
        command = ["git", *of, "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def check_config(workdir: Workdir, config: Config, extend: bool = False) -> str:
    """Raise UserError unless the folder is empty or holds a run that can go on as `config`.

    -> what grows, in words; "" for nothing. Fields that change no result may differ. What grows
    goes on from a whole checkpoint.
    """
    workdir.check()
    if not workdir.is_begun():  # a claim without a checkpoint is replaced
        return ""
    stored = stored_config(workdir)
    if config.data.split == OWN and stored.data.split in OWN_MEANS:
        config = config.replace(data={"split": stored.data.split})
    grown = []
    if extend and stored.backbone == config.backbone:
        for name in GROWING:
            before, now = value_of(stored, name), value_of(config, name)
            if now > before:
                grown.append(f"{name} from {before} to {now}")
                stored = stored.replace(**{name: now})
    if difference := first_difference(stored, config):
        may_grow = difference.split(":")[0] in GROWING and not extend
        hint = ": --extend goes on to more seeds or epochs" if may_grow else ""
        raise UserError(
            f"--workdir={workdir.path} holds a run of another configuration: {difference}{hint}"
        )
    if grown and not can_go_on(workdir.checkpoints):
        raise UserError(
            f"--workdir={workdir.path}: --extend: no whole checkpoint was kept: expected one to go "
            "on from"
        )
    return ", ".join(grown)


def conclude(
    experiment: Experiment,
    workdir: Workdir,
    states: State,
    seconds: dict[str, float],
    notice: processes.Notice | None = None,
    stopped: bool = False,
) -> dict:
    """Evaluate the best parameters and write ranks.npz, then summary.json, which ends the run.
    stopped: before its time, as a search prunes its trials.

    Raises Interrupted between two parts of the evaluation if `notice` came: the checkpoint of the
    last epoch is there.
    """

    def pause() -> None:
        if notice and notice.holds():
            raise notice.error(f"{workdir.path} is saved after its last epoch")

    clock = Clock(experiment.engine, seconds)
    ranks, sums = clock.timed("evaluate", rank_all, experiment, states.best_params, pause)
    pause()
    initial = clock.timed("evaluate", initial_statistics, experiment)
    ended = processes.fetch(states.replace(params=(), moments=(), best_params=()))
    summary = summarise(experiment, ended, ranks, sums, initial)
    workdir.write_npz("ranks.npz", ranks)
    summary["seconds"] = clock.seconds
    summary |= {"stopped": "pruned"} if stopped else {}
    workdir.write_json("summary.json", summary)
    return workdir.read_json("summary.json")


def initial_statistics(experiment: Experiment) -> dict:
    """GCA sums of the untrained parameters over the test users, (S,) leaves."""
    if not experiment.config.gca.positions:
        return {}
    engine, evaluation = experiment.engine, experiment.evaluation
    states = engine.create(experiment.seeds, experiment.hparams())
    rows = evaluation.padded(evaluation.rows["test"])
    return processes.fetch(engine.final(states.params, rows, (), experiment.tables)[1])


def stored_config(workdir: Workdir) -> Config:
    """The configuration in config.json, checked as if it had been given on the command line; fields
    that its version lacked get their defaults. Raises UserError naming file and field."""
    values = workdir.read_json("config.json")
    try:
        return known.resolve(values | {"mesh": ""})  # its devices need not be those of here
    except UserError as error:
        raise UserError(f"{workdir.path / 'config.json'}: {error}") from None


def check_same_data(workdir: Workdir, fingerprints: dict[str, str]) -> None:
    """A begun run goes on only with the data and candidates that it began with."""
    if not workdir.holds("env.json"):
        return
    env = workdir.read_json("env.json")
    files.check(workdir.path / "env.json", env, {"fingerprints": dict}, "those of a run")
    for name, value in fingerprints.items():
        if (there := env["fingerprints"].get(name)) != value:
            raise UserError(
                f"--workdir={workdir.path}: its {name} fingerprint is {there}, "
                f"found {value}: expected the data that the run began with"
            )


def describe(experiment: Experiment, env: dict) -> str:
    """One line: model, data, sizes, seeds, devices, fingerprints."""
    log, device, n_seeds = experiment.data.log, env["devices"][0], len(experiment.seeds)
    if len(env["devices"]) > 1:
        mesh = ", ".join(f"{name}:{size}" for name, size in env["mesh"].items())
        device += f" x{len(env['devices'])} ({mesh})"
    trained = len(set(experiment.data.task.row_users.tolist()))
    of_these = f", of which {trained} train" if trained < log.n_users else ""
    return (
        f"{experiment.label} ({experiment.config.protocol}) on {log.name}: {log.n_users} users"
        f"{of_these}, "
        f"{log.n_items[0]}+{log.n_items[1]} items, {len(log.user)} interactions; "
        f"{experiment.engine.n_parameters:,} parameters, {n_seeds} seed{'s' * (n_seeds > 1)} by "
        f"{env['seed_axis']} on {device}; data {env['fingerprints']['data']}, "
        f"test candidates {env['fingerprints']['candidates_test']}"
    )

"""One run from configuration to summary.json: what the commands and the quickstart call."""

from __future__ import annotations

from ml_collections import ConfigDict

from oa_jax import experiment as experiment_lib
from oa_jax import processes
from oa_jax.config import choice, completed, resolve
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.errors import UserError
from oa_jax.runs import loop
from oa_jax.runs.environment import environment
from oa_jax.runs.summary import label, rank_all, summarise
from oa_jax.runs.workdir import Workdir

# What is said before it is silent for long.
COMPILING = "compiling: a minute or more where no earlier call has left its programs"
RANKING = "ranking all users of both splits"


def run(config, workdir_path, say) -> dict:
    """Train `config` in a workdir and return its summary. The workdir decides: empty, start;
    begun, go on; finished, return what is there."""
    resolved = resolve(config, experiment_lib.PLACES[config["backbone"]])
    use_compilation_cache(say)  # before anything is compiled
    processes.check_equal("--config", resolved)
    with Workdir(workdir_path) as workdir:
        workdir.check(resolved)
        if workdir.is_finished:
            say(f"{workdir.path} is finished: nothing to do")
            return finished_summary(workdir)
        experiment = experiment_lib.build(resolved)
        env = environment(experiment)
        processes.check_equal("data", env["fingerprints"])
        if workdir.is_begun():
            check_same_data(workdir, env)
        workdir.claim(resolved)  # not before data and configuration are known to fit
        workdir.write_json("env.json", env)
        say(describe(experiment, env))
        say(COMPILING)
        states, seconds = loop.train(experiment, workdir, say)
        say(RANKING)
        summary = conclude(experiment, workdir, states, seconds)
    say(f"results in {workdir.path}")
    return summary


def finished_summary(workdir) -> dict:
    summary = workdir.read_json("summary.json")
    if "label" not in summary:
        raise UserError(f"{workdir.path / 'summary.json'}: no field 'label': expected a summary")
    return summary


def conclude(experiment, workdir, states, seconds) -> dict:
    """Evaluate the best parameters and write ranks.npz, then summary.json, which ends the run."""
    clock = loop.Clock(experiment.engine, dict(seconds))
    ranks, sums = clock.timed("evaluate", rank_all, experiment, states.best_params)
    initial = clock.timed("evaluate", initial_statistics, experiment)
    ended = processes.fetch(states.replace(params=(), moments=(), best_params=()))
    summary = summarise(experiment, ended, ranks, sums, initial)
    workdir.write_npz("ranks.npz", ranks)
    summary["seconds"] = clock.seconds
    workdir.write_json("summary.json", summary)
    return workdir.read_json("summary.json")


def initial_statistics(experiment):
    """GCA sums of the untrained parameters over the test users, (S,) leaves."""
    if not experiment.config["gca"]["positions"]:
        return {}
    engine = experiment.engine
    states = engine.create(experiment.seeds, experiment.hparams())
    rows = experiment.padded(experiment.eval_rows["test"])
    return processes.fetch(engine.final(states.params, rows, (), experiment.tables)[1])


def stored_config(workdir):
    """The configuration in config.json, checked as if it had been given on the command line."""
    return checked_config(workdir.read_json("config.json"), workdir.path / "config.json")


def checked_config(config, path) -> dict:
    """`config`, which was read from `path`, resolved; fields that its version lacked get their
    defaults. Raises UserError naming path and field."""
    try:
        if not isinstance(config, dict):
            raise UserError(f"found {type(config).__name__}, expected an object")
        backbone = choice("backbone", str(config.get("backbone")), experiment_lib.PLACES)
        config = completed(config)[0] | {"mesh": ""}  # its devices need not be those of here
        return resolve(ConfigDict(config), experiment_lib.PLACES[backbone])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_same_data(workdir, env):
    """A begun run goes on only with the data and candidates that it began with."""
    if not workdir.holds("env.json"):
        return
    there = workdir.read_json("env.json").get("fingerprints")
    if not isinstance(there, dict):
        raise UserError(f"{workdir.path / 'env.json'}: no field 'fingerprints': expected one")
    for name, value in env["fingerprints"].items():
        if there.get(name) != value:
            raise UserError(
                f"--workdir={workdir.path}: its {name} fingerprint is {there.get(name)}, "
                f"found {value}: expected the data that the run began with"
            )


def describe(experiment, env) -> str:
    log, config = experiment.log, experiment.config
    device = env["devices"][0]
    if len(env["devices"]) > 1:
        mesh = ", ".join(f"{name}:{size}" for name, size in env["mesh"].items())
        device += f" x{len(env['devices'])} ({mesh})"
    return (
        f"{label(config)} ({config['protocol']}) on {log.name}: {log.n_users} users, "
        f"{log.n_items[0]}+{log.n_items[1]} items, {len(log.user)} interactions; "
        f"{experiment.n_parameters:,} parameters, {len(experiment.seeds)} seeds by "
        f"{env['seed_axis']} on {device}; data {env['fingerprints']['data']}, "
        f"test candidates {env['fingerprints']['candidates_test']}"
    )

"""Searches: a sweep whose configurations the package `optuna` chooses as results come in."""

import functools
import pathlib
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from oa_jax import files, presets
from oa_jax.configuration import Config
from oa_jax.errors import UserError, needs
from oa_jax.runs import index
from oa_jax.runs.run import check_config
from oa_jax.runs.study import Search, checked, program_key
from oa_jax.runs.sweep import Sweep
from oa_jax.runs.training import Training


class SearchSweep(Sweep):
    """As `Sweep`, with a trial for each run, OUT/trial-NNNN.

    A trial's value is the median over its seeds of the best validation NDCG@10; one that is worse
    than the median trial at the same epoch is pruned. What optuna knows lies in OUT/optuna.log,
    from which the same command, or another worker, goes on.
    """

    more_come = True

    def __init__(self, search: Search, out: Any, *args: Any, **options: Any):
        super().__init__({}, out, *args, **options)
        self.search, self.progress.runs = search, search.trials
        self._trials: dict[str, Any] = {}  # by run, those of this worker
        self._numbers: set[int] = set()  # of the trials in `runs`

    def _claim_folder(self):
        with needs("search", "a study that searches"):
            import optuna
            from optuna.storages.journal import JournalFileBackend
        path = self.out / "study.json"
        if not path.exists():
            files.write_json(path, {"search": True})
        elif files.read_json(path) != {"search": True}:
            raise UserError(f"{path}: runs without a search: expected the study of before")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        log = self.out / "optuna.log"
        try:
            self._study = optuna.create_study(
                study_name="study",
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(log))),
                pruner=optuna.pruners.MedianPruner(),
                direction="maximize",
                load_if_exists=True,
            )
        except ValueError as error:
            raise UserError(f"{log}: {error}: expected what optuna wrote") from None
        self._optuna, self._package = optuna, pathlib.Path(optuna.__file__).parent
        self._take_in()
        for name, config in self.runs.items():
            if self._workdir(name).holds("config.json"):  # a search that has changed is another
                check_config(self._workdir(name), config)

    def _take_in(self):
        """The trials of all workers become runs."""
        for frozen in self._study.trials:
            if frozen.number in self._numbers:
                continue
            fixed = self._optuna.trial.FixedTrial(frozen.params, frozen.number)
            with self._blaming():
                try:
                    self._add(frozen.number, fixed)
                except ValueError as error:
                    # It may have been killed before it knew its parameters.
                    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
                    of_optuna = pathlib.Path(raised_in).is_relative_to(self._package)
                    if frozen.state.is_finished() or not of_optuna:
                        raise

    def _blaming(self):
        """Around a call of `search.make`, so that what it raises names the study's file."""
        file = getattr(getattr(self.search.make, "__code__", None), "co_filename", "the search")
        return presets.blaming(file, file)

    def _write_index(self):
        self._take_in()
        super()._write_index()

    def _add(self, number, trial) -> str | None:
        """The name of the trial's run; None where its parameters make none, which is recorded."""
        name, state = f"trial-{number:04d}", self._optuna.trial.TrialState
        try:
            self.runs |= checked({name: self.search.make(trial)}, "the search")
        except UserError as error:
            if self._study.trials[number].state == state.RUNNING:
                self._study.tell(number, state=state.FAIL, skip_if_finished=True)
            self._record(name, error)
        self._numbers.add(number)
        return name if name in self.runs else None

    def _ask(self) -> tuple[str, Config] | None:
        """A new trial, None if there are as many as there shall be."""
        name = None
        while name is None:
            with self._claims.alone():  # no two workers ask at once, nor draw the same
                trials = self._study.trials
                known = sum(bool(t.params) or t.number in self._numbers for t in trials)
                if known >= self.search.trials:
                    return None
                # By the number of the trial: another process goes on with draws of its own.
                self._study.sampler = self._optuna.samplers.TPESampler(
                    seed=len(trials), constant_liar=True
                )
                trial = self._study.ask()
                with self._blaming():
                    name = self._add(trial.number, trial)
        self._trials[name] = trial
        return name, self.runs[name]

    def _next_program(self):
        return super()._next_program() or (self._ask() and super()._next_program())

    def _queue(self, group, experiment) -> Iterator[Training]:
        yield from super()._queue(group, experiment)
        key = program_key(next(iter(group.values())))  # whose split is as asked
        while asked := self._ask():
            name, config = asked
            if program_key(config) != key:  # the next program's
                return
            yield from super()._queue({name: config}, experiment)

    def _after_epoch(self, training, seconds):
        super()._after_epoch(training, seconds)
        trial = self._trials.get(training.workdir.path.name)
        # One that was gone on with is not pruned, nor one whose seeds are at different epochs.
        if trial and len(set(training.epochs)) == 1:
            scores = [index.score_of(row, None) for row in training.rows.newest]
            trial.report(float(np.median(scores)), int(training.epochs[0]))
            training.stop = training.stop or trial.should_prune()

    def _count(self, name):
        super()._count(name)
        number, states = int(name.rpartition("-")[2]), self._optuna.trial.TrialState
        if self._study.trials[number].state != states.RUNNING:
            return
        # Each worker counts every finished run: another one may tell it meanwhile.
        tell = functools.partial(self._study.tell, number, skip_if_finished=True)
        summary = self._workdir(name).read_json("summary.json")
        if summary.get("stopped"):
            tell(state=states.PRUNED)
            return
        scores = [index.score_of(of, summary.get("watched")) for of in summary["per_seed"]]
        tell(float(np.median(scores)))


def sweep_of(study: dict[str, Config] | Search, *args: Any, **options: Any) -> Sweep:
    """The `Sweep` of a study, which may search."""
    kind = SearchSweep if isinstance(study, Search) else Sweep
    return kind(study, *args, **options)

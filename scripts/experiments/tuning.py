"""The search of each contender's learning rate, and the rounds of runs that make a comparison.

What is kept are the runs' own files. The search is told to Optuna again from them each time, so
there is no study on disk, and an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glue.errors import UsageError

from experiments.comparison import Comparison
from experiments.runner import Failure, Run, made, sweep


@dataclass(frozen=True)
class Search:
    """How far the search of one contender's learning rate is.

    Attributes:
        trials: the results there are, in the order of the trials.
        wanted: the runs that come next; none: the search is done.
        best_lr: the rate that is best by `tuning.by`, of equals the first; None while the search is
            not done, or where every trial diverged.
    """

    trials: list[dict[str, Any]]
    wanted: list[Run]
    best_lr: float | None


def search(comparison: Comparison, contender: str) -> Search:
    """Read what there is of the contender's trials, and ask Optuna for the one that comes next.

    Raises:
        UsageError: the runs do not have what `tuning.by` names, or Optuna is missing.
    """
    first = comparison.grid_runs(contender)
    wanted, trials = missing(first, comparison), results(first, comparison)
    if not wanted and comparison.tuning["trials"] > len(first):
        with warnings.catch_warnings():  # that the worst value is clipped to the finite ones
            warnings.filterwarnings("ignore", "Clip non-finite")
            wanted = _propose(comparison, contender, trials)
    values = {result["settings"]["lr"]: told(result, comparison) for result in trials}
    rates = {lr: value for lr, value in values.items() if value is not None}
    better = max if comparison.higher_is_better else min
    best = None if wanted or not rates else better(rates, key=lambda lr: rates[lr])
    return Search(trials, wanted, best)


def told(result: Mapping[str, Any], comparison: Comparison) -> float | None:
    """A run's value of what `tuning.by` names; None if it diverged."""
    if result["score"] is None:
        return None
    values = {"score": result["score"], **result.get("metrics", {})}
    by = comparison.tuning["by"]
    if by not in values:
        raise UsageError(
            f"tuning.by {by!r}: a run of {comparison.workload.name} has {', '.join(values)}"
        )
    return values[by]


def _propose(comparison: Comparison, contender: str, trials: list[dict[str, Any]]) -> list[Run]:
    """Tell Optuna the grid's results, and go on with its own trials as far as there are results.

    Adds those to `trials`; returns the run that comes next, if any.
    """
    optuna, tuning = need_optuna(), comparison.tuning
    worst = -math.inf if comparison.higher_is_better else math.inf
    study = optuna.create_study(
        # a Gaussian process: after a grid of 5, TPE proposes an end of the range whatever was best
        sampler=optuna.samplers.GPSampler(n_startup_trials=tuning["grid"], seed=tuning["seed"]),
        direction="maximize" if comparison.higher_is_better else "minimize",
    )
    rates = [result["settings"]["lr"] for result in trials]
    ends = [*comparison.range(contender), *rates]  # rounded, a rate may lie outside
    space = optuna.distributions.FloatDistribution(min(ends), max(ends), log=True)
    for lr in rates:
        study.enqueue_trial({"lr": lr})
    for number in range(tuning["trials"]):
        trial = study.ask({"lr": space})
        if number >= len(rates):
            run = comparison.run(contender, float(f"{trial.params['lr']:.3g}"))
            if missing([run], comparison):
                return [run]
            trials += results([run], comparison)
        value = told(trials[number], comparison)
        study.tell(trial, worst if value is None else value)
    return []


def need_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"learning rates beyond the grid are Optuna's: {error}; pip install {error.name}, "
            "or set tuning.trials to tuning.grid"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # WARNING: its GP would like greenlet
    return optuna


def make_runs(comparison: Comparison, processes: int, show: bool = True) -> list[Failure]:
    """Make all runs that are not there yet: grids and the shared rate, Optuna's trials, seeds.

    A contender with a run that fails is left out of the rounds that follow; the next call tries
    again. `processes` at a time; with `show`, a line for each round and a progress bar on stderr.

    Raises:
        UsageError: before any training: Optuna or data is missing, or the folder is not writable.
            After the first run: it does not have what `tuning.by` names.
    """
    failures: list[Failure] = []

    def of_all(runs_of: Callable[[str], Sequence[Run]]) -> list[Run]:
        failed = {failure.run.contender for failure in failures}
        return [
            run for name in comparison.contenders if name not in failed for run in runs_of(name)
        ]

    def make(title: str, runs: Sequence[Run]) -> None:
        count = len({run.path(comparison.output_dir) for run in missing(runs, comparison)})
        if count:
            if show:
                print(f"{title}: {count} runs", file=sys.stderr)
            failures.extend(sweep(runs, comparison.output_dir, processes, show)[1])

    if comparison.tuning["trials"] > comparison.tuning["grid"]:
        need_optuna()
    grids = of_all(comparison.grid_runs)
    if comparison.tuning["by"] != "score":  # found wrong by one run, not by all
        if not results(grids, comparison):
            make("to see what a run measures", grids[:1])
        for result in results(grids, comparison):
            told(result, comparison)
        grids = of_all(comparison.grid_runs)
    others = [*of_all(comparison.shared_runs), *of_all(comparison.reach_runs)]
    make("grids and shared rate", [*grids, *others])
    while trials := of_all(lambda name: search(comparison, name).wanted):
        make("Optuna's trials", trials)
    make("seeds", of_all(lambda n: comparison.seed_runs(n, search(comparison, n).best_lr)))
    return failures


def missing(runs: Sequence[Run], comparison: Comparison) -> list[Run]:
    """Those that have no result."""
    return [run for run in runs if not run.path(comparison.output_dir).exists()]


def results(runs: Sequence[Run], comparison: Comparison) -> list[dict[str, Any]]:
    """The results of those that have one."""
    return made(runs, comparison.output_dir)

"""Runs that are kept: each result is a JSON file, and what is there is not run again."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomic import check_output, write_json
from glue.errors import UsageError
from tqdm import tqdm

from experiments.contenders import get_contender
from experiments.pool import work_through
from experiments.workload import Workload


@dataclass(frozen=True)
class Run:
    """One training: what, with which optimizer, how, and from which seed."""

    workload: Workload
    contender: str
    settings: Mapping[str, Any]
    seed: int

    def path(self, root: Path | str) -> Path:
        """Where the result lies: root/WORKLOAD/CONTENDER/HASH-SEED.json.

        The hash is of the complete settings, of the workload's description and of the version of
        DWMGrad's rule, so a workload with other steps or another model, or a rule that was changed
        since, is not taken for this one. Where its data lies does not count.
        """
        identity: dict[str, Any] = {
            "settings": self.workload.settings(self.contender, self.settings),
            "workload": self.workload.description(),
        }
        if version := get_contender(self.contender).rule:
            identity["rule"] = version
        text = json.dumps(identity, sort_keys=True)
        name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{self.seed}.json"
        return Path(root) / self.workload.name / self.contender / name

    def __str__(self) -> str:
        own = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{self.workload.name}, {self.contender} ({own}), seed {self.seed}"


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error; it has no result file, so the next sweep tries it again.

    `error` is one line; `log` has its traceback, unless the process died.
    """

    run: Run
    error: str
    log: Path


def run_once(run: Run, root: Path | str) -> dict[str, Any]:
    """The result of a run, from its file if there is one, else from training now.

    A run of many steps that was interrupted goes on from what it saved beside that file.

    Raises:
        UsageError: a bad setting, missing data, or a result file that cannot be read.
    """
    path, workload = run.path(root), run.workload
    if path.exists():
        return read_result(path)
    workload.check()
    folder = path.with_suffix(".unfinished")  # an interrupted run goes on from it
    folder.mkdir(parents=True, exist_ok=True)
    try:
        measured = workload.run(run.contender, run.settings, run.seed, folder)
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    result = {
        "workload": workload.name,
        "metric": workload.metric,
        "higher_is_better": workload.higher_is_better,
        "description": workload.description(),
        "contender": run.contender,
        "settings": workload.settings(run.contender, run.settings),
        "seed": run.seed,
        **measured,
    }
    write_json(path, result)
    shutil.rmtree(folder, ignore_errors=True)
    return read_result(path)


def sweep(runs: Sequence[Run], root: Path | str, processes: int = 2) -> list[Failure]:
    """Make all runs that are not there yet, some at a time, each on one thread.

    A run that fails, or whose process dies, costs the others nothing. Ctrl-C ends the sweep; what
    was finished stays, and the same sweep goes on from there. On stderr are a progress bar with
    the time left, and a line for each failure.

    Args:
        runs: what to run; the same run twice is made once.
        root: the folder of all results; `root`/workers.log takes what the processes print
            and the tracebacks of those that fail.
        processes: how many at a time; 0: none is made. They are spawned, so a script that calls
            this must guard its main part with `if __name__ == "__main__":`.

    Raises:
        UsageError: before any training: a bad setting, missing data, or `root` is not writable.
        KeyboardInterrupt: Ctrl-C, when all processes have ended.
    """
    log = Path(root) / "workers.log"
    check_output(log, "--output_dir")
    paths = [run.path(root) for run in runs]
    missing = {path: run for path, run in zip(paths, runs, strict=True) if not path.exists()}
    todo = list(missing.values())
    for workload in {id(run.workload): run.workload for run in todo}.values():
        workload.check()
    failures: list[Failure] = []
    with tqdm(total=len(todo), unit="run") as bar:

        def done(index: int, error: str | None) -> None:
            if error is not None:
                failures.append(Failure(todo[index], error, log))
                bar.write(f"failed: {todo[index]}: {error}", file=sys.stderr)
            bar.update()

        if todo and processes:
            work_through(run_once, [(run, root) for run in todo], processes, done, log)
    return failures


def made(runs: Iterable[Run], root: Path | str) -> list[dict[str, Any]]:
    """The results of those runs that have one."""
    paths = [run.path(root) for run in runs]
    return [read_result(path) for path in paths if path.exists()]


def read_result(path: Path) -> dict[str, Any]:
    """A result's values; a UsageError if the file cannot be read, or is no result."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        needed = ("score", "settings", "seed", "metric", "diverged", "history")
        if not isinstance(result, dict) or any(name not in result for name in needed):
            raise ValueError(f"it lacks one of {', '.join(needed)}")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a result ({error}); remove it to run again") from error
    return result

"""Runs that are kept: each result is a JSON file, and what is there is not run again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

from atomic import check_output, write_json
from glue.errors import UsageError
from tqdm import tqdm

from experiments.contenders import get_contender
from experiments.workload import Workload

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


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


def sweep(
    runs: Sequence[Run],
    root: Path | str,
    processes: int = 2,
    failures: list[Failure] | None = None,
) -> list[Failure]:
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
        failures: a list to which those of this sweep are added; the caller has them after Ctrl-C.

    Returns:
        That list, or one of its own.

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
    failures = [] if failures is None else failures
    waiting, workers = deque(todo if processes else ()), dict[Any, _Worker]()
    with tqdm(total=len(todo), unit="run") as bar:
        try:
            while waiting or workers:
                while waiting and len(workers) < processes:
                    worker = _Worker(root, log)
                    workers[worker.pipe] = worker
                    worker.give(waiting.popleft())
                for pipe in wait(list(workers)):
                    worker = workers[pipe]
                    if (error := worker.answer()) is not None:
                        failures.append(Failure(worker.run, error, log))
                        bar.write(f"failed: {worker.run}: {error}", file=sys.stderr)
                    bar.update()
                    if waiting and worker.process.is_alive():
                        worker.give(waiting.popleft())
                    else:
                        workers.pop(pipe).end()
        finally:
            for worker in workers.values():
                worker.process.terminate()
                worker.end()
    return failures


class _Worker:
    """A process with one thread that makes one run after the other, and the pipe to it.

    What it has loaded serves the next run. A ProcessPoolExecutor fails all its calls when one of
    its processes dies, and a Pool waits forever.
    """

    def __init__(self, root: Path | str, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, root, log), daemon=True)
        with patch.dict(os.environ, _ENVIRONMENT):  # a child reads it before any of its code runs
            self.process.start()
        other.close()  # so that the child's death is seen here as the pipe's end
        self.run: Run

    def give(self, run: Run) -> None:
        self.run = run
        with contextlib.suppress(OSError):  # it died: `answer` will tell
            self.pipe.send(run)

    def answer(self) -> str | None:
        """The error of the run that was given, in one line, or None."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            why = f"signal {-code}" + (" (out of memory?)" if code == -9 else "")
            return f"its process ended by {why if code < 0 else f'exit code {code}'}"

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(pipe: Connection, root: Path | str, log: Path) -> None:
    """A process's life: take a run, make it, answer, until the pipe is closed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    with contextlib.suppress(EOFError):
        while True:
            run = pipe.recv()
            try:
                run_once(run, root)
                pipe.send(None)
            except BaseException as raised:
                traceback.print_exc()
                lines = str(raised).strip().splitlines() or [""]
                kind = "" if isinstance(raised, UsageError) else f"{type(raised).__name__}: "
                pipe.send(kind + lines[0])


def _end_with_parent() -> None:
    """A parent that is killed leaves nothing: the same sweep, given again, finds its runs alone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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

"""Calls spread over spawned processes; one that fails or dies costs the others nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from glue.errors import UsageError

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def work_through(
    function: Callable[..., Any],
    tasks: Sequence[tuple],
    processes: int,
    done: Callable[[int, str | None, str], None],
    log: Path,
) -> None:
    """Call `function(*task)` for every task, each in a process with one thread.

    A process takes one task after the other, so what it has loaded serves the next; one that dies
    is replaced.

    Args:
        function: importable by its name; what it returns is dropped.
        tasks: the arguments of each call.
        processes: how many at a time.
        done: called here after each call with the task's index, an error in one line or None, and
            its traceback.
        log: takes all that the processes print.
    """
    waiting = deque(range(len(tasks)))
    workers: dict[Any, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < max(1, processes):
                worker = _Worker(function, log)
                workers[worker.pipe] = worker
                worker.give(tasks, waiting.popleft())
            for pipe in wait(list(workers)):
                worker = workers[pipe]
                error, details = worker.answer()
                done(worker.task, error, details)
                if waiting and worker.process.is_alive():
                    worker.give(tasks, waiting.popleft())
                else:
                    workers.pop(pipe).end()
    finally:
        for worker in workers.values():
            worker.process.terminate()
            worker.end()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, function: Callable[..., Any], log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function, str(log)), daemon=True)
        with _environment():  # a child reads it before any of its own code runs
            self.process.start()
        other.close()  # so that the child's death is seen here as the pipe's end
        self.task = -1

    def give(self, tasks: Sequence[tuple], index: int) -> None:
        self.task = index
        with contextlib.suppress(OSError):  # it died: `answer` will tell
            self.pipe.send(tasks[index])

    def answer(self) -> tuple[str | None, str]:
        """(error or None, traceback) of the task that was given."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            why = f"signal {-code}" + (" (out of memory?)" if code == -9 else "")
            return f"its process ended by {why if code < 0 else f'exit code {code}'}", ""

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(pipe: Connection, function: Callable[..., Any], log: str) -> None:
    """A process's life: take a task, answer, until the pipe is closed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        error: str | None = None
        details = ""
        try:
            function(*task)
        except BaseException as raised:
            lines = str(raised).strip().splitlines() or [""]
            kind = "" if isinstance(raised, UsageError) else f"{type(raised).__name__}: "
            error, details = kind + lines[0], traceback.format_exc()
        pipe.send((error, details))


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""Calls spread over spawned processes; one that fails or dies costs the others nothing.

A ProcessPoolExecutor fails all its calls when one of its processes dies, and a Pool waits forever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

from glue.errors import UsageError

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def work_through(
    function: Callable[..., Any],
    tasks: Sequence[tuple],
    processes: int,
    done: Callable[[int, str | None], None],
    log: Path,
) -> None:
    """Call `function(*task)` for every task, each in a process with one thread.

    A process takes one task after the other, so what it has loaded serves the next; one that dies
    is replaced.

    Args:
        function: importable by its name; what it returns is dropped.
        tasks: the arguments of each call.
        processes: how many at a time.
        done: called here after each call with the task's index, and an error in one line or None.
        log: takes all that the processes print, and the errors' tracebacks.
    """
    waiting = deque(enumerate(tasks))
    workers: dict[Any, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < max(1, processes):
                worker = _Worker(function, log)
                workers[worker.pipe] = worker
                worker.give(*waiting.popleft())
            for pipe in wait(list(workers)):
                worker = workers[pipe]
                done(worker.task, worker.answer())
                if waiting and worker.process.is_alive():
                    worker.give(*waiting.popleft())
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
        with patch.dict(os.environ, _ENVIRONMENT):  # a child reads it before any of its code runs
            self.process.start()
        other.close()  # so that the child's death is seen here as the pipe's end
        self.task = -1

    def give(self, number: int, task: tuple) -> None:
        self.task = number
        with contextlib.suppress(OSError):  # it died: `answer` will tell
            self.pipe.send(task)

    def answer(self) -> str | None:
        """The error of the task that was given, or None."""
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


def _serve(pipe: Connection, function: Callable[..., Any], log: str) -> None:
    """A process's life: take a task, answer, until the pipe is closed."""
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
            task = pipe.recv()
            try:
                function(*task)
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

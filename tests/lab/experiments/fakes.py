"""Workloads that take no time, and end in every way a run can end."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from experiments.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Fake(Workload):
    """Its score is the seed; it counts its runs in a file, and ends as `ending` says."""

    name: str = "fake"
    metric: str = "accuracy"
    higher_is_better: bool = True
    steps: int = 10
    ending: str = "well"
    ends_so_from: int = 0

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        assert folder.is_dir()
        with (Path(self.data_dir or "") / "runs").open("a") as file:
            file.write(f"{seed}\n")
        if seed >= self.ends_so_from:
            if self.ending == "error":
                raise RuntimeError(f"seed {seed} fails\nwith more lines")
            if self.ending == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.ending == "exit":
                raise SystemExit(3)
            if self.ending == "sleep":
                time.sleep(600)
        print("printed by a run")
        return {
            "score": float(seed),
            "diverged": False,
            "train_loss": 1.0,
            "seconds": 0.1,
            "steps": 10,
            "history": [],
            "threads": os.environ["OMP_NUM_THREADS"],
        }


@dataclass(frozen=True, kw_only=True)
class Peak(Fake):
    """Best where the learning rate is 1e-2, diverged above 0.5; `failing` is a contender."""

    name: str = "peak"
    failing: str = ""

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        if contender == self.failing:
            raise RuntimeError(f"cannot read {folder}/some.file")
        result = super().run(contender, settings, seed, folder)
        distance = abs(math.log10(settings["lr"] / 1e-2))
        if settings["lr"] > 0.5:
            return result | {"score": None, "train_loss": None, "diverged": True, "metrics": {}}
        metrics = {"loss": distance, "speed": settings["lr"]}
        score = (1 - distance / 4 if self.higher_is_better else distance) + seed / 1e4
        history = [
            {"step": 5, "loss": 1.23456789},
            {"step": 10, "loss": 0.5},
            {"step": 10, "score": score},
        ]
        return result | {"score": score, "metrics": metrics, "history": history}


@contextlib.contextmanager
def interrupted_when(ready: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C in what is run below, once something is so; it ends by KeyboardInterrupt."""

    def interrupt() -> None:
        limit = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)


def counted(folder: Path) -> list[str]:
    """The seeds that were run, sorted."""
    return sorted((folder / "runs").read_text().split()) if (folder / "runs").exists() else []

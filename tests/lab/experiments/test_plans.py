"""The figures of the plans are those of the committed results."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import fmean

import pytest

pytest.importorskip("pandas")
from experiments.evidence.compared import Compared

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"
PLAN = (ROOT / "docs" / "plans" / "loss-limit.md").read_text("utf-8")


def compared(name: str) -> Compared:
    record = json.loads((RESULTS / f"comparison-{name}.json").read_text("utf-8"))
    return Compared("comparison", name, record)


def rows(heading: str) -> list[list[str]]:
    part = re.split(r"^#+ ", PLAN.split(f"{heading}\n")[1], maxsplit=1, flags=re.M)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_the_ninth_round_is_that_of_its_results() -> None:
    small = ("small-regression", "small-factors", "small-characters")
    workloads = ("language", "tiny-sst2", "cifar10-brief", *small)
    found = {
        name: json.loads((RESULTS / f"limit-form-9-{name}.json").read_text("utf-8"))["results"]
        for name in workloads
    }
    for share, *told in rows("### What the ninth round gave"):
        shown, regrets = [], []
        for name in workloads:
            scores = [run["score"] for run in found[name][share]["runs"]]
            assert [run["seed"] for run in found[name][share]["runs"]] == [100, 101, 102]
            if name == "language":
                shown.append(fmean(scores))
                regrets.append(100 * (fmean(map(math.log, scores)) - math.log(66.30)))
            else:
                shown.append(100 * fmean(scores))
                regrets.append(compared(name).means("adamw").max() - shown[-1])
        assert told == [f"{each:.2f}" for each in (*shown, fmean(regrets))]

"""The figures of the plans are those of the committed results."""

from __future__ import annotations

import json
import math
import re
from statistics import fmean

from pages import ROOT, compared

RESULTS = ROOT / "docs" / "results"
PLAN = (ROOT / "docs" / "plans" / "loss-limit.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    part = re.split(r"^#+ ", PLAN.split(f"{heading}\n")[1], maxsplit=1, flags=re.M)[0]
    part = re.sub(r"^.*\n\|-.*\n", "", part, flags=re.M)  # the tables' heads
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


SMALL = ("small-regression", "small-factors", "small-characters")
SIX = ("language", "tiny-sst2", "cifar10-brief", *SMALL)
OTHERS = ("cora", "digits-brief", "cifar10-short", "glue-stsb", "glue-mrpc", "glue-mrpc-lora")
SEEDS = [100, 101, 102]


def scores(study: str, name: str, share: str, seeds: list[int]) -> list[float]:
    file = RESULTS / f"limit-form-{study}-{name}.json"
    runs = json.loads(file.read_text("utf-8"))["results"][share]["runs"]
    assert [run["seed"] for run in runs] == seeds
    return [run["score"] for run in runs]


def shown_and_regret(name: str, found: list[float]) -> tuple[float, float]:
    """The mean as the tables show it, and how far it is behind AdamW's best rate."""
    if name == "language":
        return fmean(found), 100 * (fmean(map(math.log, found)) - math.log(66.30))
    mean = 100 * fmean(found)
    return mean, compared(name).means("adamw").max() - mean


def test_the_table_of_the_ninth_round_is_that_of_its_results() -> None:
    for share, *told in rows("### What the ninth round gave"):
        each = [shown_and_regret(name, scores("9", name, share, SEEDS)) for name in SIX]
        shown, regrets = zip(*each, strict=True)
        assert told == [f"{number:.2f}" for number in (*shown, fmean(regrets))]


def test_the_table_of_the_tenth_round_is_that_of_its_results() -> None:
    table = rows("### What the tenth round gave")
    for share, *told in table[:4]:
        is_auto = share == "0.2 + 0.4"
        study = "9" if is_auto else "10"
        each = [shown_and_regret(name, scores(study, name, share, SEEDS)) for name in SIX]
        for name in ("glue-cola", "glue-cola-lora"):
            if is_auto:
                found = compared(name).rates("dwmgrad-auto")
                assert sorted(found.seed) == [0, 1]
                each.append(shown_and_regret(name, found.score.tolist()))
            else:
                each.append(shown_and_regret(name, scores("10", name, share, [0, 1])))
        shown, regrets = zip(*each, strict=True)
        assert told == [f"{number:.2f}" for number in (*shown, fmean(regrets))]
    for share, *told in table[4:]:
        found = []
        for name in OTHERS:
            seeds = [0, 1] if name.startswith("glue") else [0, 1, 2]
            if share != "0.2 + 0.4":
                found.append(fmean(scores("10", name, share, seeds)))
            elif name in ("cora", "digits-brief"):
                found.append(fmean(scores("larger", name, share, seeds)))
            else:
                own = compared(name).rates("dwmgrad-auto")
                assert sorted(own.seed) == seeds
                found.append(own.score.mean())
        assert told == [f"{100 * score:.2f}" for score in found]

"""What of finetune's gain is DWMGrad's: beside AdamW with its betas, and beside a deaf window."""

from __future__ import annotations

from collections.abc import Sequence

from experiments import stats
from experiments.evidence.compared import Compared
from experiments.evidence.results import Result
from experiments.table import lead, table

FINETUNE = "dwmgrad-finetune"
CONTROL = "adamw-control"
DEAF = "deaf"
"""In its studies, beside a label `finetune`."""


def gains(
    comparisons: Sequence[Compared], results: Sequence[Result]
) -> dict[str, list[stats.Estimate | None]]:
    """By how many points finetune is ahead of each control, workload by workload; None: not run.

    `results` has the studies of a deaf window, whatever else.
    """
    deaf = {each.data["workload"]: each for each in results if DEAF in each.entries}

    def over_control(each: Compared) -> stats.Estimate | None:
        has_new = len(each.runs(CONTROL, "final"))
        return each.difference(FINETUNE, CONTROL) if has_new else None

    def over_deaf(each: Compared) -> stats.Estimate | None:
        study = deaf.get(each.data["workload"])
        return study.better("finetune", DEAF) if study else None

    return {
        "AdamW, betas 0.6 and 0.998": [over_control(each) for each in comparisons],
        "a deaf window": [over_deaf(each) for each in comparisons],
    }


def controls(comparisons: Sequence[Compared], results: Sequence[Result]) -> str:
    """A row a workload: finetune's lead over each control, and p corrected over the workloads.

    Then the means in points, and in standard deviations of AdamW's seeds over those workloads that
    had no part in choosing finetune. Nothing without a control.
    """
    found = gains(comparisons, results)
    if not any(map(any, found.values())):
        return ""
    rows = [{"workload": each.title + _machines(each)} for each in comparisons]
    points = {"workload": "**mean (workloads)**"}
    deviations = {"workload": "**in deviations, not chosen on**"}
    for name, own in found.items():
        chances = stats.holm([each.chance_equal() if each else None for each in own])
        for row, each, p in zip(rows, own, chances, strict=True):
            row[name] = lead(each) if p is None else f"{lead(each)}, p = {p:.2g}"
        pairs = zip(comparisons, own, strict=True)
        points[name] = _mean(own)
        deviations[name] = _mean(
            [each.deviations(gain) for each, gain in pairs if FINETUNE not in each.chosen_on]
        )
    return table([*rows, points, deviations])


def _mean(found: Sequence[stats.Estimate | None]) -> str:
    known = [each for each in found if each is not None]
    return f"{lead(stats.equal_weights(known))} ({len(known)})"


def _machines(compared: Compared) -> str:
    """A mark where finetune and AdamW with its betas have not run on one machine."""
    has_both = len(compared.runs(CONTROL, "final"))
    return " (two machines)" if has_both and compared.apart(FINETUNE, CONTROL) else ""

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


def gains(
    comparisons: Sequence[Compared], studies: Sequence[Result]
) -> dict[str, list[stats.Estimate | None]]:
    """By how many points finetune is ahead of each control, workload by workload; None: not run."""
    deaf = {each.data["workload"]: each for each in studies if DEAF in each.entries}

    def over_control(each: Compared) -> stats.Estimate | None:
        has_new = len(each.runs(CONTROL, "final"))
        return each.difference(FINETUNE, CONTROL) if has_new else None

    def over_deaf(each: Compared) -> stats.Estimate | None:
        study = deaf.get(each.data["workload"])
        found = study.better(DEAF) if study else None
        return found and stats.Estimate(-found.mean, found.variance, found.freedom, found.count)

    return {
        "AdamW, betas 0.6 and 0.998": [over_control(each) for each in comparisons],
        "a deaf window": [over_deaf(each) for each in comparisons],
    }


def controls(comparisons: Sequence[Compared], studies: Sequence[Result]) -> str:
    """A row a workload: finetune's lead over each control, and p corrected over the workloads.

    Then the means in points, and in standard deviations of AdamW's seeds over those workloads that
    had no part in choosing finetune. Nothing without a control.
    """
    found = gains(comparisons, studies)
    chances = {
        name: stats.holm([each.chance_equal() if each else None for each in own])
        for name, own in found.items()
    }
    rows = []
    for place, each in enumerate(comparisons):
        cells = {
            name: lead(own[place])
            + (f", p = {chances[name][place]:.2g}" if chances[name][place] is not None else "")
            for name, own in found.items()
        }
        apart = own_machine(each) * bool(next(iter(found.values()))[place])
        rows.append({"workload": each.title + apart, **cells})
    for head, of in (("mean (workloads)", _points), ("in deviations, not chosen on", _deviations)):
        row = {"workload": f"**{head}**"}
        for name, own in found.items():
            pairs = zip(comparisons, own, strict=True)
            known = [each for each in (of(*pair) for pair in pairs) if each is not None]
            row[name] = f"{lead(stats.equal_weights(known))} ({len(known)})"
        rows.append(row)
    return table(rows) if any(map(any, found.values())) else ""


def _points(_: Compared, found: stats.Estimate | None) -> stats.Estimate | None:
    return found


def _deviations(compared: Compared, found: stats.Estimate | None) -> stats.Estimate | None:
    if found is None or FINETUNE in compared.chosen_on:
        return None
    return compared.in_deviations(FINETUNE, found)


def own_machine(compared: Compared) -> str:
    """A mark where finetune and AdamW with its betas did not run on one machine."""
    return " (two machines)" if compared.apart(FINETUNE, CONTROL) else ""

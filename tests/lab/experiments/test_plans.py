"""The figures of the plans are those of the committed results."""

from __future__ import annotations

import json
import math
import re
from statistics import fmean

from pages import ROOT, compared

RESULTS = ROOT / "docs" / "results"
COMPARISONS = sorted(RESULTS.glob("comparison-*.json"))
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
    file = RESULTS / f"limit-form/{study}-{name}.json"
    runs = json.loads(file.read_text("utf-8"))["results"][share]["runs"]
    assert [run["seed"] for run in runs] == seeds
    return [run["score"] for run in runs]


def shown_and_regret(name: str, found: list[float]) -> tuple[float, float]:
    """The mean as the tables show it, and how far it is behind AdamW's best rate."""
    if name == "language":
        return fmean(found), 100 * (fmean(map(math.log, found)) - math.log(66.30))
    mean = 100 * fmean(found)
    return mean, compared(name).means("adamw").max() - mean


def old_auto(name: str) -> list[float]:
    """auto's scores with the seeds of a comparison, as it was from the eleventh round on."""
    made = {"glue-cola": 4, "cifar10-short": 3, "cora": 3, "digits-brief": 3}.get(name, 2)
    return scores("11", name, "0.2 + 0.4 + 2", list(range(made)))[: 2 if made == 4 else made]


def cells(study: str, arm: str) -> list[str]:
    """An arm's row: its scores on the six workloads that choose, and its mean regret."""
    each = [shown_and_regret(name, scores(study, name, arm, SEEDS)) for name in SIX]
    shown, regrets = zip(*each, strict=True)
    return [f"{number:.2f}" for number in (*shown, fmean(regrets))]


def test_the_table_of_the_ninth_round_is_that_of_its_results() -> None:
    for share, *told in rows("### What the ninth round gave"):
        assert told == cells("9", share)


def test_the_table_of_the_tenth_round_is_that_of_its_results() -> None:
    table = rows("### What the tenth round gave")
    for share, *told in table[:4]:
        is_auto = share == "0.2 + 0.4"
        study = "9" if is_auto else "10"
        each = [shown_and_regret(name, scores(study, name, share, SEEDS)) for name in SIX]
        for name in ("glue-cola", "glue-cola-lora"):
            if is_auto:  # its runs are those of the next round, of which these are the first two
                seeds = [0, 1, 2, 3] if name == "glue-cola" else [0, 1]
                found = scores("11", name, share, seeds)[:2]
            else:
                found = scores("10", name, share, [0, 1])
            each.append(shown_and_regret(name, found))
        shown, regrets = zip(*each, strict=True)
        assert told == [f"{number:.2f}" for number in (*shown, fmean(regrets))]
    for share, *told in table[4:]:
        found = []
        for name in OTHERS:
            seeds = [0, 1] if name.startswith("glue") else [0, 1, 2]
            larger = name in ("cora", "digits-brief")
            study = "10" if share != "0.2 + 0.4" else "larger" if larger else "11"
            found.append(fmean(scores(study, name, share, seeds)))
        assert told == [f"{100 * score:.2f}" for score in found]


def test_the_tables_of_the_eleventh_round_are_those_of_its_results() -> None:
    table = rows("### What the eleventh round gave")
    means: dict[str, list[float]] = {}
    for share, *told in table[:2]:
        study = "9" if share == "0.2 + 0.4" else "11"
        each = [shown_and_regret(name, scores(study, name, share, SEEDS)) for name in SIX]
        for name, seeds in (("glue-cola", [0, 1, 2, 3]), ("glue-cola-lora", [0, 1])):
            each.append(shown_and_regret(name, scores("11", name, share, seeds)))
        shown, regrets = zip(*each, strict=True)
        assert told == [f"{number:.2f}" for number in (*shown, fmean(regrets))]
        others = [*regrets]
        del others[SIX.index("small-factors")]
        means[share] = [fmean(regrets), fmean(others)]
    for share, *told in table[2:4]:
        each = []
        for name in OTHERS:
            seeds = [0, 1] if name.startswith("glue") else [0, 1, 2]
            mean = 100 * fmean(scores("11", name, share, seeds))
            best = compared(name.removesuffix("-brief")).means("adamw").max()
            each.append((mean, best - mean))
        shown, regrets = zip(*each, strict=True)
        assert told == [f"{number:.2f}" for number in (*shown, fmean(regrets))]
        means[share].append(fmean(regrets))
    for share, *told in table[4:]:
        names = ("glue-sst2", "glue-sst2-lora", "resnet14")
        found = [100 * fmean(scores("11", name, share, [0, 1])) for name in names]
        assert told == [f"{number:.2f}" for number in (*found, fmean(found))]
        means[share].append(fmean(found))
    first, rest, six, new = map(float.__sub__, *means.values())
    text = " ".join(PLAN.split())
    assert first >= 1 and six > 0 and new < 0
    assert f"the mean regret of the other seven grows by {-rest:.2f}." in text
    assert f"that follow it shrinks by {six:.2f}, and the mean score on the three new" in text
    assert f"new ones grows by {-new:.2f}." in text
    least = min(scores("11", "glue-cola", "0.2 + 0.4 + 2", [0, 1, 2, 3]))
    assert f"The least score of a run of CoLA was {100 * least:.1f} %." in text


def test_the_tables_of_the_twelfth_and_thirteenth_rounds_are_those_of_their_results() -> None:
    (momentum, *auto), *twelfth = rows("### What the twelfth round gave")
    assert momentum == "0.9" and auto == cells("11", "0.2 + 0.4 + 2")
    thirteenth = rows("### What the thirteenth round gave")
    assert (len(twelfth), len(thirteenth)) == (4, 6)
    for study, table in (("12", twelfth), ("13", thirteenth)):
        for arm, *told in table:
            assert told == cells(study, arm)


def test_the_table_of_the_fourteenth_round_is_that_of_its_results() -> None:
    table = rows("### What the fourteenth round gave")
    assert len(table) == 3
    for share, *told in table:
        arm = f"{share}, 0.6"
        *shown, regret = cells("14", arm)
        cola = [100 * score for score in scores("14", "glue-cola", arm, [0, 1])]
        assert told == [*shown, ", ".join(f"{score:.2f}" for score in cola), regret]
    taken = 100 * fmean(scores("14", "glue-cola", "0.2 + 0.6 + 2, 0.6", [0, 1]))
    auto = 100 * fmean(old_auto("glue-cola"))
    text = " ".join(PLAN.split())
    assert f"it has {taken:.2f} in place of auto's {auto:.2f}." in text
    found = {}
    for name, seeds in (("glue-stsb", [0, 1]), ("cora", [0, 1, 2]), ("digits-brief", [0, 1, 2])):
        now = 100 * fmean(old_auto(name))
        found[name] = 100 * fmean(scores("14", name, "0.2 + 0.6 + 2, 0.6", seeds)), now
    assert "it has {:.2f} % in place of auto's {:.2f},".format(*found["glue-stsb"]) in text
    (cora, auto), (digits, same) = found["cora"], found["digits-brief"]
    told = f"Cora {cora:.2f} and {digits:.2f} % on spoken digits, where auto has {auto:.2f} and"
    assert f"{told} {same:.2f}." in text and found["glue-stsb"][1] - found["glue-stsb"][0] > 2


def test_the_table_of_the_fifteenth_round_is_that_of_its_results() -> None:
    table, mean, worst = rows("### What the fifteenth round gave"), {}, {}
    assert len(table) == 5
    for arm, *told in table:
        is_auto = arm == "0.2 + 0.4 + 2, 0.9 (auto)"
        study, share = ("11", "0.2 + 0.4 + 2") if is_auto else ("15", arm)
        each = [shown_and_regret(name, scores(study, name, share, SEEDS)) for name in SIX]
        for name, comparison in (("cora", "cora"), ("digits-brief", "digits")):
            own = old_auto(name) if is_auto else scores("15", name, arm, [0, 1, 2])
            each.append(shown_and_regret(comparison, own))
        shown, regrets = zip(*each, strict=True)
        mean[arm], worst[arm] = fmean(regrets), max(regrets)
        assert told == [f"{number:.2f}" for number in (*shown, mean[arm])]
    near = [arm for arm in mean if mean[arm] <= min(mean.values()) + 0.3]
    assert [arm for arm in near if "+ 1," in arm] == ["0.1 + 1.4 + 1, 0.6"]
    text = " ".join(PLAN.split())
    assert f"it is {worst['0.1 + 1.4 + 1, 0.6']:.2f} points behind AdamW's best rate" in text
    assert f"of 0.8 is {worst['0.1 + 1.4 + 2, 0.8']:.2f} behind at the worst" in text


def test_what_the_conditions_of_the_fifteenth_round_gave() -> None:
    arm, new = "0.1 + 1.4 + 1, 0.6", []
    table, text = rows("### What the conditions gave"), " ".join(PLAN.split())
    assert len(table) == 9
    names = ("cifar10-short", *(f"glue-{name}" for name in ("cola", "stsb", "mrpc")))
    names += ("glue-cola-lora", "glue-mrpc-lora", "glue-sst2", "glue-sst2-lora", "resnet14")
    for name, (_, *told) in zip(names, table, strict=True):
        made = {"cifar10-short": 3, "glue-cola": 4}.get(name, 2)
        found = scores("15", name, arm, list(range(made)))
        mean, best = 100 * fmean(found[:2] if made == 4 else found), None
        auto = 100 * fmean(old_auto(name))
        if told[0] != "-":
            best = compared(name).means("adamw").max()
            assert told[0] == f"{best:.2f}"
        assert told[1:] == [f"{auto:.2f}", f"{mean:.2f}"]
        new.append((best, auto, mean))
    old, now = (fmean(best - each[i] for best, *each in new[:6]) for i in (0, 1))
    assert f"the mean regret shrinks from {old:.2f} to {now:.2f}." in text
    gains = [mean - auto for _, auto, mean in new]
    assert f"It loses {-min(gains):.1f} points to auto on STS-B" in text
    assert [i for i, gain in enumerate(gains) if gain < 0] == [2]
    assert f"ahead of auto by {fmean(gains[6:]):.2f} points in the mean" in text
    cola = scores("15", "glue-cola", arm, [0, 1, 2, 3])
    least = min(cola + scores("15", "glue-cola-lora", arm, [0, 1]))
    assert f"a run of CoLA was {100 * least:.1f} %." in text


def test_the_table_of_the_sixteenth_round_is_that_of_its_results() -> None:
    names = {"tiny-sst2": "tiny-sst2", "cifar10-brief": "cifar10-brief", "digits-brief": "digits"}
    names |= {"cora": "cora", **{name: name for name in (SMALL[1], SMALL[2], SMALL[0])}}
    mean, rest, text = {}, {}, " ".join(PLAN.split())
    for share, *told in rows("### What the sixteenth round gave"):
        today = share == "as it is"
        study, arm = ("16-today", "0.2 + 0.4") if today else ("16", share)
        regrets = [
            compared(comparison).means("adamw").max()
            - 100 * fmean(s for r in RATES for s in scores(study, name, f"{arm} at {r}", [0, 1]))
            for name, comparison in names.items()
        ]
        mean[share], rest[share] = fmean(regrets), fmean([*regrets[:4], *regrets[5:]])
        assert told == [f"{regret:.2f}" for regret in (*regrets, mean[share])]
        if today:
            before = regrets[0]
    assert [*mean] == ["as it is", "0.2 + 0.4", "0.1 + 1.4"] and regrets[0] - before > 0
    assert mean["0.1 + 1.4"] < mean["0.2 + 0.4"] - 0.3
    behind, ahead = (rest["0.1 + 1.4"] - rest[share] for share in ("as it is", "0.2 + 0.4"))
    assert f"it is {behind:.2f} points behind it, and {-ahead:.2f} ahead of 0.2 + 0.4." in text
    assert f"On tiny-sst2 capped is {regrets[0] - before:.1f} points behind what it was." in text


RATES = ("0.001", "0.01", "0.1", "1")


def test_the_table_of_the_controls_is_that_of_its_results() -> None:
    from experiments import stats
    from experiments.evidence.compared import FINETUNE, gains
    from experiments.evidence.page import read_results
    from experiments.table import lead

    text = (ROOT / "docs" / "plans" / "controls.md").read_text("utf-8")
    results = read_results(RESULTS)
    comparisons = [compared(name) for name in NEW.values()]
    found = gains(comparisons, results)
    for name, own in zip(NEW, zip(*found.values(), strict=True), strict=True):
        if any(own):
            assert f"| {name} | {' | '.join(map(lead, own))} |" in text
    means = [stats.equal_weights([each for each in own if each]) for own in found.values()]
    assert f"| mean | {' | '.join(map(lead, means))} |" in text
    control, deaf = found.values()
    chances = stats.holm([each.chance_equal() if each else None for each in control])
    assert min(chance for chance in chances if chance is not None) > 0.05
    pairs = zip(comparisons, control, strict=True)
    unit = stats.equal_weights(
        [each.deviations(gain) for each, gain in pairs if gain and FINETUNE not in each.chosen_on]
    )
    assert f"is {lead(unit)} standard deviations" in " ".join(text.split())
    every = [compared(f.stem.removeprefix("comparison-")) for f in COMPARISONS]
    known = [each for each in next(iter(gains(every, results).values())) if each]
    mean = stats.equal_weights(known)
    told = "{:.2f} points [{:+.2f}, {:+.2f}]".format(mean.mean, *mean.interval)
    for page, words in (
        ("README.md", f"over {len(known)} workloads it is {told} ahead of AdamW"),
        ("docs/index.md", f"Over {len(known)} workloads it is level with"),
    ):
        assert words in " ".join((ROOT / page).read_text("utf-8").split())
    resnet = comparisons[list(NEW).index("ResNet-20")]
    for name in ("dwmgrad-finetune", "adamw-control"):
        lead_of = resnet.difference(name)
        told = "{:.2f} [{:+.2f}, {:+.2f}]".format(lead_of.mean, *lead_of.interval)
        assert told in " ".join(text.split())
    for name in ("small-characters", "cifar10-brief"):
        points = [
            [100 * run["score"] for run in json.loads(file.read_text())["results"][label]["runs"]]
            for file, label in (
                (RESULTS / f"replay-{name}.json", "replayed"),
                (RESULTS / f"deaf-{name}.json", "finetune"),
            )
        ]
        assert lead(stats.welch(*points)) in " ".join(text.split())


NEW = {
    "cifar10-brief": "cifar10-brief",
    "ResNet-20": "cifar10-short",
    "Cora": "cora",
    "spoken digits": "digits",
    "CoLA, LoRA": "glue-cola-lora",
    "CoLA": "glue-cola",
    "MRPC, LoRA": "glue-mrpc-lora",
    "MRPC": "glue-mrpc",
    "STS-B": "glue-stsb",
    "MNLI": "glue-mnli",
    "QQP": "glue-qqp",
    **{name: name for name in (*SMALL, "tiny-sst2")},
}


def test_the_table_of_the_new_seeds_is_that_of_the_results() -> None:
    arms = ("dwmgrad-finetune", "dwmgrad-auto", "prodigy-corrected")
    table = rows("### What the new seeds gave")
    assert {row[0] for row in table} == set(NEW) and len(table) == 15
    leads: dict[str, dict[str, float]] = {arm: {} for arm in arms}
    for workload, *told in table:
        each = compared(NEW[workload])
        for arm, cell in zip(arms, told, strict=True):
            if not len(each.runs(arm, "final")):
                assert cell == "-"
                continue
            lead = each.difference(arm)
            assert lead.count == 16 and len(each.runs(arm, "final")) == 8
            assert cell == "{:+.2f} [{:+.2f}, {:+.2f}]".format(lead.mean, *lead.interval)
            leads[arm][workload] = lead.mean
    auto = {workload: -lead for workload, lead in leads["dwmgrad-auto"].items()}
    old = [-compared(name).ahead("dwmgrad-auto") for name in NEW.values()]
    apart = [
        auto[workload]
        for workload, name in NEW.items()
        if "dwmgrad-auto" not in compared(name).chosen_on
    ]
    assert len(apart) == 2
    text = " ".join(PLAN.split())
    for told, found in (
        ("auto is {:.2f} points behind in the mean and {:.2f} at the worst.", [*auto.values()]),
        ("that chose AdamW's rate it is {:.2f} and {:.2f}: both missed.", old),
        ("QQP) it is {:.2f} and {:.2f} with new seeds", apart),
    ):
        assert told.format(fmean(found), max(found)) in text
    finetune = list(leads["dwmgrad-finetune"].values())
    told = f"finetune is {fmean(finetune):.2f} points ahead in the mean, and {-min(finetune):.2f}"
    assert f"{told} behind at the worst." in text
    goals = {True: "met", False: "missed"}
    assert fmean(auto.values()) <= 1 and max(auto.values()) <= 3
    assert "over all 15 both goals are met." in text
    first = [-compared(name).ahead("dwmgrad-auto") for name in ("glue-mnli", "glue-qqp")]
    assert f"first seeds it is {fmean(first):.2f} and {max(first):.2f}: likewise." in text
    assert fmean(first) > 1 and max(first) <= 3
    entries = json.loads((RESULTS / "comparison-glue-cola-lora.json").read_text())["contenders"]
    lost = {
        name: [run["seed"] for run in runs if run["score"] < 0.05]
        for name, own in entries.items()
        for runs in [own["runs"] * (name == "dwmgrad-auto") + own["final"]]
        if own["final"]
    }
    assert lost == {
        "adamw": [16],
        "dwmgrad-auto": [0, 10],
        "dwmgrad-finetune": [],
        "adamw-control": [],
    }
    told = f"the mean is {goals[fmean(apart) <= 1]}, the worst {goals[max(apart) <= 3]}."
    assert told in text


RIVALS = (
    *("dwmgrad-auto", "dwmgrad-capped", "momo-adam", "schedule-free-adamw"),
    *("prodigy", "prodigy-corrected"),
)
QUICK = ("cifar10-brief", "cora", "digits", *SMALL, "tiny-sst2")


def at_one_setting(arm: str, names: tuple[str, ...]) -> str:
    """The least mean regret of one rate for all, with the rate, and the worst."""
    import pandas as pd

    some = {name: compared(name) for name in names}
    regrets = pd.DataFrame({n: e.best_beside(arm) - e.means(arm) for n, e in some.items()}).dropna()
    rate = regrets.mean(axis=1).idxmin()
    at = "" if some[names[0]].entries[arm]["rateless"] else f" at {rate:g}"
    return f"{regrets.loc[rate].mean():.2f}{at}, {regrets.loc[rate].max():.2f}"


def test_the_tables_of_the_rivals_are_those_of_the_results() -> None:
    heading = "### What the rivals gave"
    table = {name: told for name, *told in rows(heading) if len(told) == len(RIVALS)}
    leads = {arm: {} for arm in RIVALS}
    for name in QUICK:
        each, told = compared(name), []
        for arm in RIVALS:
            found = each.difference(arm) if len(each.runs(arm, "final")) else None
            if found is not None:
                assert found.count == 16
                leads[arm][name] = found.mean
            told.append("-" if found is None else f"{found.mean:+.2f}")
        assert table.pop(name) == told
    assert table == {"mean": [f"{fmean(leads[arm].values()):+.2f}" for arm in RIVALS]}
    shown = {name: told for name, *told in rows(heading) if len(told) == 2}
    assert [*shown] == ["adamw", *RIVALS]
    for arm, told in shown.items():
        assert told == [at_one_setting(arm, names) for names in (QUICK[1:6], QUICK)]
    text = " ".join(PLAN.split())
    mean = {arm: fmean(found.values()) for arm, found in leads.items()}
    auto = mean["dwmgrad-auto"]
    ahead = (auto - mean[arm] for arm in ("prodigy", "prodigy-corrected"))
    assert "by {:.2f} and {:.2f} points in the mean of the new seeds.".format(*ahead) in text
    free = mean["schedule-free-adamw"]
    assert f"is {free:.2f} points ahead of AdamW in the mean, and {free - auto:.2f} ahead" in text
    least = {arm: float(told[0].split()[0].rstrip(",")) for arm, told in shown.items()}
    over = {arm: least[arm] - least["dwmgrad-auto"] for arm in least}
    assert f"it, over the five by {over['momo-adam']:.2f} points alone" in text
    assert f"setting it is {-over['schedule-free-adamw']:.2f} ahead of auto over the five" in text
    capped = leads["dwmgrad-capped"].values()
    assert f"is {-fmean(capped):.2f} behind with new seeds, and {-min(capped):.2f} on" in text
    tiny = compared("tiny-sst2").runs("prodigy", "final").score
    assert f"tiny-sst2 ({100 * tiny.mean():.2f} ± {100 * tiny.std():.2f} %)" in text


def test_the_table_of_the_lengths_is_that_of_its_results() -> None:
    for workload, steps, *told in rows("## The length of a run"):
        name = {"Cora": "cora", "spoken digits": "digits"}[workload]
        file = RESULTS / f"length-{name}{'-100' if steps == '100' else ''}.json"
        every = json.loads(file.read_text("utf-8"))["results"]
        means = {
            label: 100 * fmean(run["score"] for run in each["runs"])
            for label, each in every.items()
        }
        auto, best = means.pop("auto"), max(means.values())
        assert told == [f"{auto:.2f}", f"{best:.2f}", f"{best - auto:.1f}"]


def test_the_guards_table_is_that_of_its_results() -> None:
    text = (ROOT / "docs" / "auto.md").read_text("utf-8")
    for share, name in (("none", "brief"), ("5 %", "broken-5"), ("10 %", "broken-10")):
        file = RESULTS / f"guard-digits-{name}.json"
        every = json.loads(file.read_text("utf-8"))["results"].values()
        means = [100 * fmean(run["score"] for run in each["runs"]) for each in every]
        assert f"| {share} | {' | '.join(f'{mean:.2f}' for mean in means)} |" in text


def test_the_table_of_capped_on_the_language_model_is_that_of_its_results() -> None:
    from experiments.table import lead

    text, beside = " ".join(PLAN.split()), []
    told = {name: cells for name, *cells in rows("### What capped, Prodigy and one rate gave")}
    for form, name in (("in full", "sentences"), ("LoRA", "sentences-lora")):
        each = compared(name)
        capped, adamw, finetune = "dwmgrad-capped", "adamw", "dwmgrad-finetune"
        best = f"{lead(each.difference(capped))} at {each.runs(capped, 'final').lr.iloc[0]:.2g}"
        decades = [
            f"{(each.means(of) >= each.best_beside(of) - 3).sum() / 2:g}"
            for of in (capped, adamw, finetune)
        ]
        means = [f"{each.rates(of).score.mean():.2f}" for of in (capped, adamw)]
        assert told[form] == [best, *decades, *means]
        assert each.ahead_anew("dwmgrad-auto") > each.ahead_anew(capped)
        beside.append(each.ahead_anew("dwmgrad-auto") - each.ahead_anew("prodigy"))
        said = f"{lead(each.difference('prodigy'))} points ahead of AdamW in full"
        assert (said if name == "sentences" else lead(each.difference("prodigy"))) in text
        flat = each.rates(capped).groupby("lr").score.mean()
        assert flat[flat.index >= (0.01 if "lora" in name else 0.001)].nunique() == 1
    assert "auto is ahead of it by {:.2f} and {:.2f} points".format(*beside) in text
    page = " ".join((ROOT / "docs" / "auto.md").read_text("utf-8").split())
    assert "`auto` was {:.1f} and {:.1f} points ahead of it.".format(*beside) in page


def test_what_one_rate_costs_is_what_the_results_say() -> None:
    every = {f.stem: compared(f.stem.removeprefix("comparison-")) for f in COMPARISONS}
    text = " ".join(PLAN.split())
    behind = {
        of: {name: each.best_beside(of) - each.means(of) for name, each in every.items()}
        for of in ("adamw", "dwmgrad-auto")
    }
    one = {name: each[0.001] for name, each in behind["adamw"].items()}
    free = {name: each.min() for name, each in behind["dwmgrad-auto"].items()}
    worst = max(one, key=lambda name: one[name])
    assert worst == "comparison-small-factors"
    told = f"{fmean(one.values()):.1f} points behind its best rates in the mean, and"
    assert f"{told} {one[worst]:.1f} at the worst, on the matrix factorization." in text
    others = [points for name, points in one.items() if name != worst]
    told = f"Without that it is {fmean(others):.1f}. auto is {fmean(free.values()):.1f} and"
    assert f"{told} {max(free.values()):.1f} behind with the same seeds." in text
    encoders = [f"comparison-glue-{task}" for task in ("cola", "mnli", "mrpc", "qqp", "stsb")]
    told = [fmean(behind["adamw"][name][1e-4] for name in encoders)]
    told += [fmean(free[name] for name in encoders)]
    assert "AdamW at 0.0001 is {:.1f} behind, and auto {:.1f}.".format(*told) in text
    page = " ".join((ROOT / "docs" / "auto.md").read_text("utf-8").split())
    assert "AdamW at 0.0001 was {:.1f} behind in the mean, and `auto` {:.1f}".format(*told) in page
    apart = [name for name in every if name != "comparison-cifar10-short"]
    at = [fmean(behind["adamw"][name][lr] for name in apart) for lr in (0.00032, 0.001)]
    assert "points behind at 0.00032, and {1:.1f} at 0.001.".format(*at) in text
    assert f"Over those {len(apart)} workloads AdamW is {at[0]:.1f} points" in text


def test_the_table_of_the_language_model_is_that_of_its_results() -> None:
    from experiments import stats
    from experiments.table import lead, spread

    forms = {"in full": "sentences", "LoRA": "sentences-lora"}
    titles = ("dwmgrad-finetune", "dwmgrad-auto", "adamw-control")
    told = rows("### What the language model gave")
    text = " ".join(PLAN.split())
    assert [row[0] for row in told] == [*forms]
    for (_, *cells), name in zip(told, forms.values(), strict=True):
        each = compared(name)
        assert all(len(each.runs(of, "final")) == 8 for of in ("adamw", *titles))
        best = each.runs("adamw", "final")
        shown = f"{spread(best.score, each.metric)} at {best.lr.iloc[0]:.2g}"
        assert cells == [shown, *(lead(each.difference(of)) for of in titles)]
        beside = each.difference("dwmgrad-finetune", "adamw-control")
        assert f"{beside.mean:+.2f} [{beside.interval[0]:+.2f}, {beside.interval[1]:+.2f}]" in text
    own = ("glue-mnli", "glue-qqp", *forms.values())
    behind = [-compared(name).ahead_anew("dwmgrad-auto") for name in own]
    assert f"auto is {fmean(behind):.2f} points behind in the mean of the four, and" in text
    assert f"{max(behind):.2f} at the worst. Both goals are met." in text
    assert fmean(behind) <= 1 and max(behind) <= 3
    every = [compared(f.stem.removeprefix("comparison-")) for f in COMPARISONS]
    leads = [each.difference("dwmgrad-finetune") for each in every]
    chances = stats.holm([each.chance_equal() for each in leads])
    sure = [each.name for each, p in zip(every, chances, strict=True) if p < 0.05]
    assert {*forms.values()} <= {*sure}

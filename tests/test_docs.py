"""What the pages name exists: files, commands, options, arguments."""

from __future__ import annotations

import configparser
import functools
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import PAGES, README, ROOT, commands, row

from dwmgrad import DWMGrad
from dwmgrad.arguments import SETTINGS
from dwmgrad.presets import PRESETS
from dwmgrad.progress import SCHEMA

USAGE = ROOT / "docs" / "usage.md"
ALL = [README, ROOT / "CONTRIBUTING.md", *PAGES]
WITH_OPTIONS = sorted(
    {
        Path(word).stem
        for path in ALL
        for words in commands(path)
        for word in words
        if word.startswith("scripts/") and len(words) > 2
    }
)


@functools.cache
def help_of(script: str) -> str:
    """What a script's --help says; demo.py hands its arguments on."""
    script = script.replace("demo", "run_glue")
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--help"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_files_that_are_named_exist(path):
    for name in re.findall(
        r"\b(?:scripts|configs|tests|docs)/[\w./*-]*\w", path.read_text("utf-8")
    ):
        name = name.replace("NAME", "*").replace("schema-N", "schema-*")
        assert list(ROOT.glob(name)) or name == "docs/results/comparison-*.json", name


@pytest.mark.parametrize("path", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "how-it-works.md"])
def test_modules_that_are_named_exist(path):
    files = [
        p.relative_to(ROOT).as_posix()
        for top in ("src", "scripts", "tests")
        for p in (ROOT / top).rglob("*")
    ]
    for name in re.findall(r"`([\w/]+(?:\.py|\.c|/))`", path.read_text("utf-8")):
        place = f"/{name.rstrip('/')}"
        assert (ROOT / name).exists() or any(f"/{file}".endswith(place) for file in files), name


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_extras_and_optimizers_that_are_named_exist(path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for words in commands(path):
        for word in words:
            extra = re.fullmatch(r"\.\[(\w+)\]", word)
            assert not extra or extra[1] in setup["options.extras_require"], word
        if "--optim" in words:
            from dwmgrad.integrations.optim_args import NAMES

            assert words[words.index("--optim") + 1] in (*NAMES, "adamw_torch_fused"), words


@pytest.mark.slow
@pytest.mark.parametrize("script", WITH_OPTIONS)
def test_options_that_are_named_exist(script):
    for path in ALL:
        for words in commands(path):
            places = [n for n, word in enumerate(words) if word == f"scripts/{script}.py"]
            for word in words[places[0] + 1 :] if places else []:
                if word.startswith("--"):
                    assert re.search(rf"{word}\b", help_of(script)), f"{path.name}: {word}"


def test_the_table_of_arguments_is_the_constructors():
    text = USAGE.read_text("utf-8")
    named = re.findall(r"^\| `(\w+)` \|", text[text.index("## Arguments") :], re.M)
    parameters = list(inspect.signature(DWMGrad).parameters.values())[1:]
    assert sorted(named) == sorted(p.name for p in parameters)
    (group,) = DWMGrad([torch.zeros(1)]).param_groups
    for name in named:
        shown = text[text.index("## Arguments") :].split(f"\n| `{name}` |")[1].split("|")[1]
        if name != "loss_group":
            default = str(group.get(name)).replace("0.001", "1e-3").replace("1e-08", "1e-8")
            assert shown.strip(" `").split(",")[0] in (default, default.removesuffix(".0")), name


def test_the_table_of_the_presets_is_the_presets():
    names = (*PRESETS, None)
    groups = [DWMGrad([torch.zeros(1)], preset=name).param_groups[0] for name in names]
    part = USAGE.read_text("utf-8").split("### Presets")[1].split("\n## ")[0]
    shown = re.findall(r"^\| `(\w+)` \|" + r" ([\w.]+) \|" * len(names) + "$", part, re.M)
    differ = {name for group in groups for name in SETTINGS if group[name] != groups[-1][name]}
    assert {name for name, *_ in shown} == differ
    for name, *values in shown:
        assert [str(group[name]).removesuffix(".0") for group in groups] == values


def test_the_row_of_each_name_is_there():
    from dwmgrad.integrations.optim_args import NAMES

    for name in NAMES:
        assert len(row(USAGE, f"`{name}`")) == 3


def test_the_schema_that_the_page_names_is_todays():
    page = (ROOT / "docs" / "resume-and-faults.md").read_text("utf-8")
    assert f"A state dict has a schema number, now {SCHEMA}." in page


def test_the_figures_of_the_guard_are_those_of_the_results():
    for label, name in (("none", "brief"), ("5 %", "broken-5"), ("10 %", "broken-10")):
        text = (ROOT / "docs" / "results" / f"guard-digits-{name}.json").read_text()
        runs = [entry["runs"] for entry in json.loads(text)["results"].values()]
        means = [sum(run["score"] for run in own) / len(own) for own in runs]
        told = row(ROOT / "docs" / "auto.md", label)[1:]
        assert told == [f"{100 * mean:.2f}" for mean in means] and {*map(len, runs)} == {5}


def test_the_figures_of_the_gpu_are_those_of_the_results():
    page = (ROOT / "docs" / "speed.md").read_text("utf-8").partition("## GPUs")[2]
    measured = {}
    for name in ("step-h100.json", "step-h100-limit.json"):  # of two rows, the later one
        for each in json.loads((ROOT / "docs" / "results" / name).read_text())["rows"]:
            if each["why_not"] is None:
                kind = each["optimizer"], each["kernel"], each["state"]
                measured.setdefault(kind, {})[each["shapes"]] = each
    rows = {
        "`dwmgrad`": ("DWMGrad", "one_launch", "float32"),
        "`dwmgrad_bf16`": ("DWMGrad", "one_launch", "bfloat16"),
        "`dwmgrad_8bit`": ("DWMGrad", "one_launch", "int8"),
        "with `loss_limit`": ("DWMGrad, loss_limit", "default", "float32"),
        "schedule-free AdamW": ("AdamWScheduleFree", "own", "float32"),
    }
    shapes = ("lora-base-r8", "100m", "roberta-base")
    for label, kind in rows.items():
        found = [f"{measured[kind][shape]['ratio']['median']:.2f}" for shape in shapes]
        assert f"| {label} | {' | '.join(found)} |" in page, label
    first = json.loads((ROOT / "docs" / "results" / "step-h100.json").read_text())["rows"]
    adamw = {r["shapes"]: r for r in first if (r["optimizer"], r["kernel"]) == ("AdamW", "fused")}
    times = [f"{adamw[shape]['ms']['median']:.2f}" for shape in shapes]
    assert f"| AdamW fused, ms | {' | '.join(times)} |" in page
    (slow,) = (
        r for r in first if (r["optimizer"], r["shapes"]) == ("DWMGrad, loss_limit", "roberta-base")
    )
    assert f"took {slow['ratio']['median']:.1f} times" in page
    ratio = measured[rows["`dwmgrad`"]]["lora-base-r8"]["ratio"]["median"]
    limited = measured[rows["with `loss_limit`"]]["lora-base-r8"]["ratio"]["median"]
    told = f"it takes {ratio:.1f} times AdamW's, `auto` {limited:.1f}."
    assert told in README.read_text("utf-8")

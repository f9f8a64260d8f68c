"""What the README and the pages under docs/ say: their code, commands, links and tables."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)


def commands(path: Path) -> list[list[str]]:
    """The words of every command in the blocks of bash, without comments."""
    lines = "".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def row(path: Path, start: str) -> list[str]:
    """The cells of the one table row that begins with `start`."""
    (line,) = (x for x in path.read_text("utf-8").splitlines() if x.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("| ").split("|")]


def links(path: Path) -> list[str]:
    """The targets of all links and pictures that are not on the web."""
    found = re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8"))
    return [target for target in found if "://" not in target]


def anchors(path: Path) -> set[str]:
    """The headings as links name them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def compared(name: str) -> Any:
    """The committed comparison of optimizers on one workload."""
    pytest.importorskip("pandas")
    from experiments.evidence.compared import Compared

    text = (ROOT / f"docs/results/comparison-{name}.json").read_text("utf-8")
    return Compared("comparison", name, json.loads(text))

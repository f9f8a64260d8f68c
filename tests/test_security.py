"""Nothing of ours unpickles or evaluates what comes from outside."""

import ast
from pathlib import Path

import pytest
import torch

import dwmgrad

SOURCES = sorted(Path(dwmgrad.__file__).parent.rglob("*.py"))
SOURCES += sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
# `python -m dwmgrad SCRIPT` runs the script, fault_run.py the scripts of this project
RUNS_SCRIPTS = {"__main__.py": {"compile", "exec"}, "fault_run.py": {"run_path"}}


def names_called(tree: ast.AST) -> set[str]:
    """Of the functions that are called by their bare name or as a part of runpy."""
    calls = (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {call.removeprefix("runpy.").removeprefix("builtins.") for call in calls}


def test_the_sources_are_found() -> None:
    assert {"optimizer.py", "__main__.py", "run_glue.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_unpickles_or_evaluates(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True"
    assert not imported & UNSAFE_MODULES
    allowed = RUNS_SCRIPTS.get(path.name, set())
    assert (
        not (names_called(tree) & {"eval", "exec", "compile", "run_path", "run_module"}) - allowed
    )


def test_a_state_dict_needs_no_more_than_weights_only(tmp_path: Path) -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = dwmgrad.DWMGrad([param], lr=torch.tensor(0.1))
    param.grad = torch.ones(3)
    optimizer.step(loss=1.0)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    dwmgrad.DWMGrad([param]).load_state_dict(
        torch.load(tmp_path / "optimizer.pt", weights_only=True)
    )

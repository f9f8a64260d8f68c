"""The patch for transformers, on a copy of the installed one: the names are its own there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from pages import ROOT

HERE = ROOT / "contrib" / "transformers"
PATCH = HERE / "dwmgrad.patch"
PACKAGE = Path(transformers.__file__).parent
[VERSION] = re.findall(r"transformers (\d+\.\d+\.\d+)", (HERE / "README.md").read_text())
pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(
        transformers.__version__ != VERSION, reason=f"the patch is for transformers {VERSION}"
    ),
    pytest.mark.skipif(shutil.which("git") is None, reason="git applies the patch"),
]


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree as of transformers' repository: the files that the patch changes, and links."""
    tree = tmp_path_factory.mktemp("transformers")
    changed = re.findall(r"^--- a/src/transformers/(.+)$", PATCH.read_text(), re.M)

    def copy(folder: Path) -> None:
        (tree / "src" / "transformers" / folder).mkdir(parents=True)
        for path in (PACKAGE / folder).iterdir():
            name = folder / path.name
            to = tree / "src" / "transformers" / name
            if any(each.startswith(f"{name}/") for each in changed):
                copy(name)
            elif name.as_posix() in changed:
                shutil.copy(path, to)
            elif path.name != "__pycache__":
                to.symlink_to(path)

    copy(Path())
    done = run(tree, "git", "apply", str(PATCH))
    assert done.returncode == 0, done.stderr
    return tree


def run(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(tree / "src"), str(ROOT / "src")])
    environment = {**os.environ, "PYTHONPATH": path, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def test_its_own_tests_pass(patched: Path) -> None:
    done = run(
        patched, sys.executable, "-m", "unittest", "-v", "tests/trainer/test_trainer_dwmgrad.py"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Ran 5 tests" in done.stderr and done.stderr.rstrip().endswith("OK")  # none skipped


TOGETHER = """
import pickle, sys
from transformers import Trainer, TrainingArguments, training_args
names = training_args.OptimizerNames
own = list(names)
assert "dwmgrad" not in sys.modules and names("dwmgrad") in own
import dwmgrad
from dwmgrad.integrations.optim_args import NAMES
assert set(NAMES) <= {each.value for each in own}
for act in (dwmgrad.register, dwmgrad.unregister, dwmgrad.unregister, dwmgrad.register):
    act()
    assert list(names) == own and names("dwmgrad") is names.DWMGRAD
    assert pickle.loads(pickle.dumps(names.DWMGRAD)) is names.DWMGRAD
    args = TrainingArguments("x", optim="dwmgrad_finetune", report_to="none")
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    assert (kind, settings["preset"]) == (dwmgrad.DWMGrad, "finetune")
"""


def test_dwmgrad_leaves_names_alone_that_are_there(patched: Path) -> None:
    done = run(patched, sys.executable, "-c", TOGETHER)
    assert done.returncode == 0, done.stderr[-3000:]

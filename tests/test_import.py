"""What `import dwmgrad` costs and brings: torch, and nothing of Hugging Face."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dwmgrad


def run(code: str, *options: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.returncode == 0 and "could not attach" not in process.stderr, process.stderr
    return process.stdout


def test_import_needs_torch_alone() -> None:
    hosts = "{'transformers', 'accelerate', 'datasets', 'evaluate', 'peft', 'matplotlib'}"
    assert run(f"import sys, dwmgrad; print({hosts} & set(sys.modules))").strip() == "set()"


def test_the_hosts_are_attached_in_any_order_of_imports() -> None:
    check = "; from accelerate import Accelerator; print(Accelerator.backward.feeds_dwmgrad)"
    assert run("import dwmgrad" + check).strip() == "True"
    assert run("import accelerate, dwmgrad" + check).strip() == "True"


def imports_of(path: Path) -> set[Path]:
    """The files of the package that a file imports, anywhere in it, for types or otherwise."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            place = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in [place / each.name for each in node.names]:
                files = (name.with_suffix(".py"), name / "__init__.py", place.with_suffix(".py"))
                found.add(next((f for f in files if f.exists()), place / "__init__.py"))
    return found - {path}


def test_no_file_imports_one_that_imports_it() -> None:
    source = Path(dwmgrad.__file__).parent
    graph = {path: imports_of(path) for path in source.rglob("*.py")}
    assert graph[source / "__init__.py"] >= {source / "optimizer.py"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_public_names() -> None:
    assert set(dwmgrad.__all__) == {
        "DWMGrad",
        "__version__",
        "param_groups",
        "register",
        "unregister",
    }
    assert all(hasattr(dwmgrad, name) for name in dwmgrad.__all__)


ARGUMENTS = "TrainingArguments('x', optim='dwmgrad', report_to='none')"
TRAINER = "from transformers import Trainer; print(Trainer.get_optimizer_cls_and_kwargs(args)[0])"


@pytest.mark.parametrize(
    "imports",
    [
        "import dwmgrad; from transformers import TrainingArguments",
        "from transformers import TrainingArguments; import dwmgrad",
        pytest.param(
            "import dwmgrad; dwmgrad.register(); from transformers import TrainingArguments",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_importing_it_is_enough_for_the_name_and_does_not_import_the_trainer(imports: str) -> None:
    code = (
        f"{imports}; args = {ARGUMENTS}; import sys; print('transformers.trainer' in sys.modules)"
    )
    assert run(f"{code}; {TRAINER}").splitlines() == ["False", str(dwmgrad.DWMGrad)]


def test_after_unregister_what_is_imported_later_is_as_without_dwmgrad() -> None:
    run("""
import copyreg, os, sys
import dwmgrad
dwmgrad.unregister()
assert "transformers" not in sys.modules
from multiprocessing.reduction import ForkingPickler
from transformers import trainer, training_args

names, kind = training_args.OptimizerNames, trainer.Trainer

def traces():
    post_init = vars(training_args.TrainingArguments)["__post_init__"]
    choose = vars(kind)["get_optimizer_cls_and_kwargs"].__func__
    return [
        [*names.__members__], dir(names), [each.__name__ for each in trainer.DEFAULT_CALLBACKS],
        post_init.__code__.co_filename, choose.__code__.co_filename,
        names in copyreg.dispatch_table, names in ForkingPickler._extra_reducers,
    ]

without = traces()
assert not any("DWMGRAD" in name.upper() for name in [*without[0], *without[2]])
assert [os.path.basename(path) for path in without[3:5]] == ["training_args.py", "trainer.py"]
assert without[5:] == [False, False]
dwmgrad.register()
assert all(now != before for now, before in zip(traces(), without))
dwmgrad.unregister()
assert traces() == without
""")


@pytest.mark.parametrize(
    "module",
    [
        "accelerate",
        "callback",
        pytest.param("transformers", marks=pytest.mark.slow),
        pytest.param("optim_args", marks=pytest.mark.slow),
    ],
)
def test_any_module_of_ours_may_be_imported_first(module: str) -> None:
    found = run(
        f"import dwmgrad.integrations.{module}; from transformers import TrainingArguments; "
        f"args = {ARGUMENTS}; {TRAINER}; from transformers.trainer import DEFAULT_CALLBACKS; "
        "from accelerate import Accelerator; "
        "print(Accelerator.backward.feeds_dwmgrad, [each.__name__ for each in DEFAULT_CALLBACKS])"
    )
    assert found.splitlines()[0] == str(dwmgrad.DWMGrad)
    assert found.splitlines()[1].startswith("True") and "DWMGradCallback" in found


@pytest.fixture(scope="module")
def without_accelerate(tmp_path_factory) -> dict[str, str]:
    """The environment of a Python that has all that this one has, but for accelerate."""
    folder = tmp_path_factory.mktemp("packages")
    hidden = ("accelerate", "peft", "dwmgrad", "__")  # peft imports accelerate
    for path in filter(os.path.isdir, sys.path):
        if "-packages" in path:
            for entry in os.scandir(path):
                if not entry.name.startswith(hidden) and not (folder / entry.name).exists():
                    os.symlink(entry.path, folder / entry.name)
    source = Path(dwmgrad.__file__).parent.parent
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(source)])}


def test_it_breaks_nothing_where_accelerate_is_missing(without_accelerate: dict) -> None:
    code = """
import importlib.util
assert importlib.util.find_spec("accelerate") is None
import dwmgrad
from transformers import Trainer, Seq2SeqTrainer
import transformers.trainer, dwmgrad.integrations.callback
try:
    dwmgrad.register()
except ImportError as error:
    print(error)
"""
    found = run(code, "-S", **without_accelerate)
    assert found.strip() == "--optim dwmgrad needs accelerate: pip install transformers accelerate"

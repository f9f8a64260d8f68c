"""The scripts as a shell starts them: an extra that is missing, Ctrl-C, --version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from glue.checkpoints import checkpoints
from glue.errors import UsageError
from glue.parsing import parse

import dwmgrad

from .conftest import ROOT, SCRIPTS

ALL = (
    "run_glue",
    "run_glue_no_trainer",
    "run_experiment",
    "compare_optimizers",
    "compare_runs",
    "make_report",
    "make_sample",
    "make_language_model",
    "fault_run",
)
SOURCE = str(Path(dwmgrad.__file__).parents[1])


def site_without(folder: Path, *packages: str) -> str:
    """All that is installed but for some packages, by links; dill tells modules by that name."""
    site = folder / "site-packages"
    site.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        name = path.name.lower().replace("_", "-")
        parts = [name.split("-")[0], *(p for p in packages if name.startswith(f"{p}-"))]
        if path.suffix != ".pth" and not {*parts} & {*packages}:
            (site / path.name).symlink_to(path)
    return str(site)


def start(name: str, words: list[str], path: str = "", **options):
    path = os.pathsep.join(filter(None, [SOURCE, path, os.environ.get("PYTHONPATH", "")]))
    flags = ["-S"] if options.pop("bare", False) else []  # no site-packages but those in `path`
    return subprocess.Popen(
        [sys.executable, *flags, str(ROOT / "scripts" / f"{name}.py"), *words],
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )


@pytest.fixture(scope="module")
def bare_site(tmp_path_factory) -> str:
    extras = ("transformers", "accelerate", "datasets", "evaluate", "peft", "yaml", "sklearn")
    return site_without(tmp_path_factory.mktemp("bare"), *extras, "matplotlib", "scipy", "optuna")


@pytest.mark.parametrize("name", ALL)
def test_without_the_extra(name, bare_site):
    _, error = (process := start(name, ["--help"], bare_site, bare=True)).communicate(timeout=60)
    assert process.returncode == 2, error
    assert error.count("\n") == 1 and error.startswith(f"{name}.py: error: No module named ")
    assert 'pip install "dwmgrad[' in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "more", "message"),
    [
        (["sklearn", "scikit-learn"], [], "No module named 'sklearn': pip install"),
        (["peft"], ["--lora_r", "2"], "LoRA needs peft: pip install"),
        (["accelerate"], [], "No module named 'accelerate': pip install"),
        (["yaml", "pyyaml"], [], "No module named 'yaml': pip install"),
    ],
)
@pytest.mark.parametrize("name", SCRIPTS)
def test_without_one_package(name, missing, more, message, argv, tmp_path):
    words = [*argv, "--task_name", "sst2", "--use_sample", "--do_train", "--do_eval", *more]
    site = site_without(tmp_path, *missing)
    _, error = (process := start(name, words, site, bare=True)).communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in error, error
    assert f"{name}.py: error: " in error.splitlines()[-1] and message in error.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_while_training(name, argv, tmp_path):
    words = [
        *argv,
        *"--task_name sst2 --use_sample --do_train --num_train_epochs 500".split(),
        *"--save_strategy steps --save_steps 5 --save_total_limit 2".split(),
        *"--dataloader_num_workers 1".split(),
    ]
    process = start(name, words, start_new_session=True)
    limit = time.monotonic() + 120
    while not checkpoints(tmp_path / "out"):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the workers, too
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error, error
    assert error.endswith(f"\n{name}.py: interrupted\n")
    assert checkpoints(tmp_path / "out") and not (tmp_path / "out" / "_lock").exists()


def test_version(script, capsys):
    with pytest.raises(SystemExit) as end:
        script(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"dwmgrad {dwmgrad.__version__}"


@pytest.mark.parametrize("name", ["data_dir", "model_name_or_path", "adapter_name_or_path"])
def test_an_empty_path_is_no_path(name):
    with pytest.raises(UsageError, match=f"--{name} '': give a value"):
        parse(["--output_dir", "o", "--use_cpu", f"--{name}="])


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/some/home")
    words = ["--data_dir=~/glue", "--output_dir=~/my out", "--resume_from_checkpoint=~/c"]
    args = parse([*words, "--use_cpu"])
    assert args.data.data_dir == "/some/home/glue"
    assert args.training.output_dir == "/some/home/my out"
    assert args.training.resume_from_checkpoint == "/some/home/c"


@pytest.mark.parametrize("folder", ["", "  ", "a\0b", "n" * 300])
def test_output_folders_that_cannot_be(script, argv, folder):
    words = [*argv, "--task_name", "sst2", "--use_sample", "--do_eval", "--output_dir", folder]
    with pytest.raises(UsageError, match="--output_dir"):
        script(words)

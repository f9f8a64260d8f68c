"""`python -m dwmgrad SCRIPT ARGS` is `python SCRIPT ARGS` that knows one more optimizer."""

import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

import dwmgrad
from dwmgrad.__main__ import main

TRAIN = """
import os
import sys
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x, labels):
        logits = self.linear(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

if __name__ == "__main__":
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    torch.manual_seed(0)
    data = [{"x": torch.randn(4), "labels": i % 2} for i in range(40)]
    trainer = Trainer(Model(), args, train_dataset=data)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert abs(optimizer.last_loss - trainer.state.log_history[-2]["loss"]) < 1e-4
    seen = [(entry["loss"], entry["window"]) for entry in trainer.state.log_history[:-1]]
    weights = [p.tolist() for p in trainer.model.parameters()]
    sys.stdout.write(f"RESULT {type(optimizer).__name__} {seen} {weights}\\n")  # in one piece
    if torch.distributed.is_initialized():
        sys.stdout.flush()
        torch.distributed.barrier()
        os._exit(0)  # past the end of gloo's threads, which now and then aborts the process
"""


def start(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


def script(folder: Path, text: str) -> str:
    (folder / "script.py").write_text(text)
    return "script.py"


def arguments(folder: Path, steps: int = 5) -> list[str]:
    return (
        f"--output_dir {folder}/run --optim dwmgrad --optim_args max_window=20 --max_steps {steps} "
        "--learning_rate 0.01 --logging_steps 1 --per_device_train_batch_size 4 --use_cpu True "
        "--report_to none --save_strategy no --disable_tqdm True"
    ).split()


def result(process: subprocess.CompletedProcess) -> list[str]:
    assert process.returncode == 0, process.stderr
    # ranks share the pipe: one's line may begin on another's
    parts = process.stdout.split("RESULT")[1:]
    return ["RESULT" + part.partition("\n")[0] for part in parts]


def test_an_unmodified_script_trains_with_dwmgrad(tmp_path: Path) -> None:
    path = script(tmp_path, TRAIN)
    [line] = result(start(["dwmgrad", path, *arguments(tmp_path)], tmp_path))
    assert line.startswith("RESULT DWMGrad")
    plain = subprocess.run(
        [sys.executable, path, *arguments(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert plain.returncode != 0 and "invalid choice: 'dwmgrad'" in plain.stderr


def test_torchrun_with_two_ranks_agrees_with_itself(tmp_path: Path) -> None:
    path = script(tmp_path, TRAIN)
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["dwmgrad", path, *arguments(tmp_path), "--ddp_backend", "gloo"]
    first, second = result(start(command, tmp_path, OMP_NUM_THREADS="1"))
    assert first == second and first.startswith("RESULT DWMGrad")


@pytest.mark.slow  # test_configs.py launches a script on two ranks
def test_accelerate_launch(tmp_path: Path) -> None:
    path = script(tmp_path, TRAIN)
    command = "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 "
    command += "--mixed_precision no --dynamo_backend no -m dwmgrad"
    [line] = result(start([*command.split(), path, *arguments(tmp_path)], tmp_path))
    assert line.startswith("RESULT DWMGrad")


LOOKS = """
import os, pickle, re, sys
import neighbour
# some versions of the Trainer add a folder made by tempfile
paths = [path for path in sys.path if not re.search(r"/tmp\\w{8}$", path)]
class Thing: pass
def f(x: int): pass
sys.stdout.write(repr((
    sys.argv, paths, __name__, __file__, sys.modules["__main__"].__dict__ is globals(),
    type(pickle.loads(pickle.dumps(Thing()))).__module__, f.__annotations__,
    __annotations__, __cached__,
)))
"""


@pytest.mark.newest
def test_the_script_sees_what_it_would_see_alone(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "neighbour.py").write_text("")
    (tmp_path / "inner" / "real.py").write_text(LOOKS)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "script.py").symlink_to(tmp_path / "inner" / "real.py")
    command = ["link/script.py", "--a", "b c", "-m", "--help"]
    ours = start(["dwmgrad", *command], tmp_path)
    alone = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == alone.stdout


@pytest.mark.newest
@pytest.mark.parametrize(
    ("code", "status"), [("import sys; sys.exit(7)", 7), ("raise SystemExit('no')", 1)]
)
def test_the_exit_code_is_the_scripts(code: str, status: int, tmp_path: Path) -> None:
    assert start(["dwmgrad", script(tmp_path, code)], tmp_path).returncode == status


@pytest.mark.newest
def test_a_traceback_shows_the_script_alone(tmp_path: Path) -> None:
    path = script(tmp_path, "def f():\n    raise KeyError('gone')\n\nf()\n")
    ours = start(["dwmgrad", path], tmp_path)
    alone = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    assert ours.returncode == alone.returncode == 1
    assert ours.stderr.replace(str(tmp_path) + "/", "") == alone.stderr.replace(
        str(tmp_path) + "/", ""
    )


@pytest.mark.newest
def test_ctrl_c_ends_it_as_it_ends_a_script(tmp_path: Path) -> None:
    path = script(tmp_path, "print('up', flush=True)\nimport time\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "dwmgrad", path],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors and "runpy" not in errors


ASKS = """
import os, sys
from transformers import TrainingArguments
if __name__ == "__main__":
    args = TrainingArguments("x", optim="dwmgrad", report_to="none", use_cpu=True)
    sys.stdout.write(f"{args.optim!r} {__spec__ and __spec__.name} {sys.argv} {__file__}\\n")
"""
KNOWN = "<OptimizerNames.DWMGRAD: 'dwmgrad'>"


@pytest.mark.newest
def test_a_module_runs_as_python_dash_m_runs_it(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "__main__.py").write_text(LOOKS)
    (tmp_path / "neighbour.py").write_text("")
    command = ["pack", "--a", "b c", "-m", "--help"]
    ours, alone = start(["dwmgrad", "-m", *command], tmp_path), start(command, tmp_path)
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == alone.stdout and "__main__" in ours.stdout
    ours, alone = start(["dwmgrad", "-m", "pack.no"], tmp_path), start(["pack.no"], tmp_path)
    assert ours.returncode == alone.returncode == 1 and ours.stderr == alone.stderr


@pytest.mark.newest
def test_a_traceback_of_a_module_shows_the_module_alone(tmp_path: Path) -> None:
    script(tmp_path, "raise KeyError('gone')\n")
    ours = start(["dwmgrad", "-m", "script"], tmp_path)
    assert ours.returncode == 1 and "KeyError: 'gone'" in ours.stderr
    assert "runpy" not in ours.stderr and "dwmgrad" not in ours.stderr


def test_launchers_run_modules_with_it(tmp_path: Path) -> None:
    script(tmp_path, ASKS)
    torchrun = "torch.distributed.run --standalone --nproc_per_node 1 -m dwmgrad -m script --a -m b"
    found = start(torchrun.split(), tmp_path, OMP_NUM_THREADS="1")
    assert found.returncode == 0, found.stderr
    path = tmp_path / "script.py"
    assert found.stdout == f"{KNOWN} script ['{path}', '--a', '-m', 'b'] {path}\n"


@pytest.mark.slow
def test_accelerate_launches_modules_with_it(tmp_path: Path) -> None:
    script(tmp_path, ASKS)
    command = "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 "
    command += "--mixed_precision no --dynamo_backend no -m dwmgrad -m script --a"
    assert KNOWN in start(command.split(), tmp_path).stdout


CHILDREN = """
import multiprocessing, os, subprocess, sys
from transformers import TrainingArguments

class Local: pass  # a child finds it in this file

def build(queue, args, local):
    known = TrainingArguments("x", optim="dwmgrad", report_to="none", use_cpu=True).optim
    queue.put((known, args.optim, type(local).__module__))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    args = TrainingArguments("x", optim="dwmgrad", report_to="none", use_cpu=True)
    process = context.Process(target=build, args=(queue, args, Local()))
    process.start()
    known, sent, module = queue.get(timeout=200)
    process.join()
    sys.stdout.write(f"{known!r} {sent!r} {module}\\n")
"""


@pytest.mark.parametrize("how", [["script.py"], ["-m", "script"]], ids=str)
def test_spawned_children_know_the_name_and_their_main(how: list[str], tmp_path: Path) -> None:
    script(tmp_path, CHILDREN)
    found = start(["dwmgrad", *how], tmp_path)
    assert found.stdout == f"{KNOWN} {KNOWN} __mp_main__\n", found.stderr


def test_arguments_sent_to_a_child_bring_the_name_with_them(tmp_path: Path) -> None:
    """The child runs no line that imports dwmgrad."""
    code = CHILDREN.replace("    context =", "    import dwmgrad\n    context =").replace(
        'TrainingArguments("x", optim="dwmgrad", report_to="none", use_cpu=True).optim\n    queue',
        "'dwmgrad' in sys.modules\n    queue",
    )
    found = start([script(tmp_path, code)[:-3]], tmp_path)
    assert found.stdout == f"True {KNOWN} __mp_main__\n", found.stderr


PRINTS = "import sys; print(sys.path, [n for n in sys.modules if n.startswith('torch')])"


@pytest.mark.newest
@pytest.mark.parametrize("flag", ["-u", "-I", "-E"])
def test_other_children_are_as_they_would_be(flag: str, tmp_path: Path) -> None:
    """Their path, what they import, and a sitecustomize of the user's."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("print('hello from', __name__)\n")
    path = script(
        tmp_path,
        f"import subprocess, sys; subprocess.run([sys.executable, {flag!r}, '-c', {PRINTS!r}])",
    )
    places = f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ours = start(["dwmgrad", path], tmp_path, PYTHONPATH=places)
    alone = start(["runpy", "script"], tmp_path, PYTHONPATH=places)
    assert ours.returncode == 0 and ours.stdout == alone.stdout
    assert ours.stdout.count("hello") == (2 if flag == "-u" else 1)


@pytest.mark.newest
def test_children_without_dwmgrad_go_on(tmp_path: Path) -> None:
    """In an environment that has neither dwmgrad nor torch."""
    venv.create(tmp_path / "other", with_pip=False)
    [packages] = (tmp_path / "other" / "lib").glob("python*/site-packages")
    (packages / "accelerate").mkdir()
    (packages / "accelerate" / "__init__.py").write_text("")
    (packages / "accelerate" / "accelerator.py").write_text("print('another one')")
    child = "import sitecustomize, accelerate.accelerator, sys; print('torch' in sys.modules)"
    path = script(
        tmp_path,
        "import os, subprocess; os.environ['PYTHONPATH'] = os.environ['PYTHONPATH'].split(':')[0]; "
        f"subprocess.run([{str(tmp_path / 'other' / 'bin' / 'python')!r}, '-c', {child!r}])",
    )
    found = start(["dwmgrad", path], tmp_path)
    assert found.stdout == "another one\nFalse\n" and "Traceback" not in found.stderr


@pytest.mark.newest
def test_a_safe_path_stays_safe(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    if not hasattr(sys.flags, "safe_path"):
        pytest.skip("this Python has no -P")
    (tmp_path / "inner" / "script.py").write_text("import sys; print(sys.path)")
    ours = start(["dwmgrad", "inner/script.py"], tmp_path, PYTHONSAFEPATH="1")
    alone = subprocess.run(
        [sys.executable, "-P", "inner/script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ours.stdout == alone.stdout and str(tmp_path) not in ours.stdout


MAKES = """
import multiprocessing, sys, torch
from dwmgrad import DWMGrad

def make():
    DWMGrad([torch.zeros(2, requires_grad=True)])

if __name__ == "__main__":
    if sys.argv[1] == "itself":
        make()
    elif sys.argv[1] in ("fork", "spawn"):
        process = multiprocessing.get_context(sys.argv[1]).Process(target=make)
        process.start()
        process.join()
    elif sys.argv[1] == "fails":
        sys.exit(3)
    elif sys.argv[1] == "exits":
        sys.exit(0)
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("itself", False),
        ("fork", False),
        ("spawn", False),
        ("nothing", True),
        ("exits", True),
        ("fails", False),
        ("--help", False),
    ],
)
def test_a_script_without_a_dwmgrad_is_told_so_at_its_end(
    how: str, told: bool, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    found = start(["dwmgrad", script(tmp_path, MAKES), how], tmp_path, TMPDIR=str(tmp_path / "tmp"))
    assert found.returncode == (3 if how == "fails" else 0), found.stderr
    said = "script.py has ended without creating a DWMGrad: one that trains needs --optim dwmgrad"
    assert (said in found.stderr) is told and len(found.stderr.splitlines()) == told
    assert not list((tmp_path / "tmp").glob("dwmgrad-*"))  # torch 2.5 leaves one of its own


@pytest.mark.newest
def test_the_scripts_own_settings_come_before_transformers(tmp_path: Path) -> None:
    code = "import sys; assert 'transformers' not in sys.modules; assert 'dwmgrad' in sys.modules"
    assert start(["dwmgrad", script(tmp_path, code)], tmp_path).returncode == 0


@pytest.mark.newest
def test_help_and_mistakes_explain_themselves(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def ends(*arguments: str) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        return end.value.code, *capsys.readouterr()

    assert ends("--version") == (0, f"dwmgrad {dwmgrad.__version__}\n", "")
    code, shown, _ = ends("--help")
    assert code == 0 and "--optim dwmgrad" in shown
    keys = [line.split()[0] for line in shown.splitlines() if line.startswith(" " * 6 + "m")]
    assert keys == ["momentum", "max_window", "maximize", "missing_loss"], "a line for each key"
    for command in ([], ["nowhere.py"], ["-m"]):
        code, _, errors = ends(*command)
        assert code == 2 and errors and "Traceback" not in errors
    wrong = start(["dwmgrad", "--optim", "dwmgrad", "run_glue.py"], tmp_path)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "give the script before its arguments" in wrong.stderr

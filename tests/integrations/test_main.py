"""`python -m dwmgrad SCRIPT ARGS` is `python SCRIPT ARGS` that knows one more optimizer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
)))
"""


def test_the_script_sees_what_it_would_see_alone(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "neighbour.py").write_text("")
    (tmp_path / "inner" / "script.py").write_text(LOOKS)
    command = ["inner/script.py", "--a", "b c", "-m", "--help"]
    ours = start(["dwmgrad", *command], tmp_path)
    alone = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == alone.stdout


@pytest.mark.parametrize(
    ("code", "status"), [("import sys; sys.exit(7)", 7), ("raise SystemExit('no')", 1)]
)
def test_the_exit_code_is_the_scripts(code: str, status: int, tmp_path: Path) -> None:
    assert start(["dwmgrad", script(tmp_path, code)], tmp_path).returncode == status


def test_a_traceback_shows_the_script_alone(tmp_path: Path) -> None:
    path = script(tmp_path, "def f():\n    raise KeyError('gone')\n\nf()\n")
    ours = start(["dwmgrad", path], tmp_path)
    alone = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    assert ours.returncode == alone.returncode == 1
    assert ours.stderr.replace(str(tmp_path) + "/", "") == alone.stderr.replace(
        str(tmp_path) + "/", ""
    )


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


def test_help_and_mistakes_explain_themselves(tmp_path: Path) -> None:
    shown = start(["dwmgrad", "--help"], tmp_path)
    assert shown.returncode == 0
    assert "--optim dwmgrad" in shown.stdout and "max_window" in shown.stdout
    for command in ([], ["nowhere.py"], ["--optim", "dwmgrad", "run_glue.py"]):
        wrong = start(["dwmgrad", *command], tmp_path)
        assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "give the script before its arguments" in wrong.stderr

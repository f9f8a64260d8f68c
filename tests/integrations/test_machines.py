"""Two machines: network namespaces with a cable between them, and disks of their own if need be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT, commands

pytestmark = pytest.mark.ecosystem
TOOLS = ("ip", "unshare", "nsenter", "mount")
LAUNCHERS = {
    words[0]: words[: words.index("scripts/run_glue.py")]
    for words in commands(ROOT / "docs" / "several-machines.md")
    if "scripts/run_glue.py" in words
}
"""What the page types before the script, by its first word."""
MODULES = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}
STEPS = 30
TRAIN = f"""
    --task_name sst2 --use_sample --do_train --do_eval --max_train_samples {8 * STEPS}
    --max_eval_samples 12 --per_device_train_batch_size 4 --num_train_epochs 1 --learning_rate 1e-3
    --optim dwmgrad --logging_steps 1 --check_ranks_steps 1 --save_strategy steps --save_steps 1
    --save_total_limit 3 --plot false --report_to none --disable_tqdm true --use_cpu
    --ddp_backend gloo --ddp_timeout 20
""".split()


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


class Machine:
    """A network and a table of mounts of its own; `sh` runs in them."""

    def __init__(self, number: int) -> None:
        self.number, self.cable = number, f"cable{number}"
        command = ["unshare", "--net", "--mount", "sh", "-c", "echo; exec sleep infinity"]
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE)
        if not self.holder.stdout.readline():
            raise OSError(f"{' '.join(command)}: exit code {self.holder.wait()}")
        self.enter = ["nsenter", "--target", str(self.holder.pid), "--net", "--mount"]

    def sh(self, command: str) -> None:
        run(*self.enter, *command.split())

    def start(self, launcher: str, output: Path, log: Path, *options: str) -> subprocess.Popen:
        """The page's command; to kill it is to kill all that runs on the machine."""
        words = {"--node_rank": self.number, "--machine_rank": self.number, "--num_processes": 2}
        words |= {
            "--nproc_per_node": 1,
            "--config_file": ROOT / "configs/accelerate/multi_node.yaml",
        }
        before = ["", *LAUNCHERS[launcher]]
        typed = [str(words.get(a, b)) for a, b in zip(before, before[1:], strict=False)][1:]
        if launcher == "accelerate":
            typed += ["--mixed_precision", "no"]
        with log.open("a") as file:
            return subprocess.Popen(
                [
                    *self.enter,
                    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *(sys.executable, "-m", MODULES[launcher], *typed),
                    *(str(ROOT / "scripts" / "run_glue.py"), *TRAIN, *options),
                    *("--output_dir", str(output)),
                ],
                env={
                    **os.environ,
                    "ACCELERATE_USE_CPU": "true",
                    "CUDA_VISIBLE_DEVICES": "",
                    "GLOO_SOCKET_IFNAME": self.cable,
                },
                stdout=file,
                stderr=file,
            )

    def received(self) -> int:
        """The bytes that came over the cable."""
        lines = Path(f"/proc/{self.holder.pid}/net/dev").read_text().splitlines()
        (line,) = (line for line in lines if self.cable in line)
        return int(line.split(":")[1].split()[0])

    def sees(self, path: Path) -> Path:
        """A path of the machine's, as it is called out here."""
        return Path(f"/proc/{self.holder.pid}/root{path}")


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    if missing := [name for name in TOOLS if shutil.which(name) is None]:
        pytest.skip(f"two machines need the programs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("two machines need network namespaces, which only root can make")
    two: list[Machine] = []
    try:
        try:
            two += [Machine(0)]
            two += [Machine(1)]
            ends = [[m.cable, "netns", str(m.holder.pid)] for m in two]
            run("ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
            for machine in two:
                machine.sh(f"ip addr add 10.0.0.{machine.number + 1}/24 dev {machine.cable}")
                machine.sh(f"ip link set {machine.cable} up")
                machine.sh("ip link set lo up")
        except OSError as error:
            pytest.skip(f"this system gives no cable between two network namespaces: {error}")
        yield two
    finally:
        for machine in two:
            machine.holder.kill()
            machine.holder.wait()


class Launch:
    """One command on both machines."""

    def __init__(self, machines: list[Machine], launcher: str, output: Path, *options: str) -> None:
        self.logs = [output.with_name(f"{output.name}.{m.number}.log") for m in machines]
        for log in self.logs:
            log.unlink(missing_ok=True)
        self.processes = [
            machine.start(launcher, output, log, *options)
            for machine, log in zip(machines, self.logs, strict=True)
        ]

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self, number: int, seconds: float = 300) -> int:
        return self.processes[number].wait(seconds)

    def text(self, number: int) -> str:
        return self.logs[number].read_text()

    def wait_for(self, path: Path) -> None:
        end = time.monotonic() + 200
        while not path.exists():
            assert self.processes[0].poll() is None and time.monotonic() < end, self.text(0)[-3000:]
            time.sleep(0.01)


def check_whole(machines: list[Machine], output: Path, launch: Launch) -> None:
    """A run that went on has come to its end, and has each step once."""
    assert [launch.wait(0), launch.wait(1)] == [0, 0], launch.text(0) + launch.text(1)
    assert "Resuming from" in launch.text(0)
    first = machines[0].sees(output)
    history = json.loads((first / "trainer_state.json").read_text())["log_history"]
    assert [each["step"] for each in history if "loss" in each] == list(range(1, STEPS + 1))
    assert (first / "model.safetensors").is_file() and (first / "all_results.json").is_file()


def test_a_lost_machine_and_a_shared_folder(machines: list[Machine], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Launch(machines, "accelerate", out) as launch:
        launch.wait_for(out / "checkpoint-3" / ".whole")
        machines[1].sh("ip link set cable1 down")  # it dies without a word
        launch.processes[1].kill()
        lost = time.monotonic()
        assert launch.wait(0, seconds=120) != 0
        assert time.monotonic() - lost > 5  # else it was not silent
        assert "RuntimeError" in launch.text(0)
    machines[1].sh("ip link set cable1 up")
    before = machines[1].received()
    with Launch(machines, "accelerate", out) as launch:
        check_whole(machines, out, launch)
    assert machines[1].received() - before > 4 * 250_000 * (STEPS // 2)  # the gradients


@pytest.fixture
def disks(machines: list[Machine], tmp_path: Path) -> Path:
    """A folder that is another disk on each machine."""
    (tmp_path / "out").mkdir()
    for machine in machines:
        machine.sh(f"mount -t tmpfs tmpfs {tmp_path / 'out'}")
    return tmp_path / "out"


def test_separate_disks_are_refused(machines: list[Machine], disks: Path) -> None:
    with Launch(machines, "torchrun", disks) as launch:
        assert launch.wait(0) and launch.wait(1)
        for number, machine in enumerate(machines):
            expected = f"error: --output_dir {disks}: the machines do not share it"
            assert expected in launch.text(number) and "'loss'" not in launch.text(number)
            assert list(machine.sees(disks).iterdir()) == []


def test_separate_disks_with_save_on_each_node(machines: list[Machine], disks: Path) -> None:
    with Launch(machines, "torchrun", disks, "--save_on_each_node") as launch:
        launch.wait_for(machines[0].sees(disks) / "checkpoint-3" / ".whole")
        launch.processes[1].kill()
        assert launch.wait(0, seconds=120) != 0
    with Launch(machines, "torchrun", disks, "--save_on_each_node") as launch:
        check_whole(machines, disks, launch)
    each = [m.sees(disks) / f"checkpoint-{STEPS}" / "model.safetensors" for m in machines]
    assert each[0].read_bytes() == each[1].read_bytes()


@pytest.mark.slow
def test_save_on_each_node_in_a_shared_folder_is_refused(
    machines: list[Machine], tmp_path: Path
) -> None:
    with Launch(machines, "torchrun", tmp_path / "out", "--save_on_each_node") as launch:
        assert launch.wait(0) and launch.wait(1)
        for number in (0, 1):
            assert "error: --save_on_each_node: machines share" in launch.text(number)
    assert list((tmp_path / "out").iterdir()) == []

"""Real processes for tests of several ranks, joined by gloo."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Each rank is a fork of one process that has imported these already.
multiprocessing.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.tensor.parallel",
        "dwmgrad",
    ]
)


def run(worker: Callable[[int], Any], tmp_path: Path, ranks: int = 2) -> list:
    """Runs `worker(rank)` in that many processes; returns what each returned."""
    mp.start_processes(
        _enter, (worker, str(tmp_path), ranks), nprocs=ranks, start_method="forkserver"
    )
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _enter(rank: int, worker: Callable[[int], Any], folder: str, ranks: int) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
    )
    leave(worker(rank), folder)


def leave(told: Any, folder: str | Path) -> None:
    """Ends this rank; what it has to tell goes to `RANK.pt` in the folder."""
    torch.save(told, f"{folder}/{dist.get_rank()}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # past gloo's own end, which aborts now and then where a peer has left first


def launch(script: str, folder: Path) -> list:
    """Runs `script folder` on two ranks by torchrun; returns what each left with `leave`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, script, str(folder)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "CUDA_VISIBLE_DEVICES": "",  # on the CPU wherever this runs
            "DS_ACCELERATOR": "cpu",
            "PYTHONWARNINGS": "ignore",
        },
        capture_output=True,
        text=True,
    )
    theirs = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
    assert done.returncode == 0, "\n".join(theirs[-40:]) or done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]

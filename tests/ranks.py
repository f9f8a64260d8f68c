"""Real processes for tests of several ranks, joined by gloo."""

import multiprocessing
import os
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
    torch.save(worker(rank), f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # past gloo's own end, which aborts now and then where a peer has left first

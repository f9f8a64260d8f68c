"""Runs a module of accelerate's as a script, unmodified, with DWMGrad in its optimizers' place.

  python run_with_dwmgrad.py MODULE [ARGS ...]
  torchrun --nproc_per_node 2 run_with_dwmgrad.py MODULE [ARGS ...]

Ends with one line on standard output: for every optimizer that was made, whether Accelerate
prepared it, and the loss and the window of each of its steps.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator

from dwmgrad import DWMGrad

MADE: list["StandIn"] = []


class StandIn(DWMGrad):
    """Takes the arguments of the optimizers that the scripts make, and leaves all but lr."""

    def __init__(self, params, lr=1e-3, **others) -> None:
        super().__init__(params, lr=lr, missing_loss="error")
        self.is_prepared = False
        self.losses, self.windows = [], []
        self.register_step_post_hook(StandIn.remember)
        MADE.append(self)

    def remember(self, *_) -> None:
        self.losses.append(self.last_loss)
        self.windows.append(self.window)


def feed_plain_loops() -> None:
    """Brings the loss of the scripts' reference loops, which call `loss.backward()` themselves."""
    of_tensor, of_accelerator = torch.Tensor.backward, Accelerator.backward
    prepare_optimizer = Accelerator.prepare_optimizer
    inside_accelerator = False

    def tensor_backward(self, *args, **kwargs):
        if not inside_accelerator:
            for optimizer in MADE:
                if not optimizer.is_prepared:
                    optimizer.observe_loss(self)
        return of_tensor(self, *args, **kwargs)

    def accelerator_backward(self, loss, **kwargs):
        nonlocal inside_accelerator
        inside_accelerator = True
        try:
            return of_accelerator(self, loss, **kwargs)
        finally:
            inside_accelerator = False

    def prepare_and_mark(self, optimizer, **kwargs):
        if isinstance(optimizer, StandIn):
            optimizer.is_prepared = True
        return prepare_optimizer(self, optimizer, **kwargs)

    torch.Tensor.backward = tensor_backward
    Accelerator.backward = accelerator_backward
    Accelerator.prepare_optimizer = prepare_and_mark


def stay_at_home() -> None:
    """Gives the scripts that ask the hub for MRPC sentences made up here, and the metric."""
    import random

    import datasets
    import evaluate

    metric = Path(__file__).with_name("glue_metric.py")
    words = ["one", "two", "three", "four", "five", "six"]
    choose = random.Random(0)

    def pairs(count: int) -> datasets.Dataset:
        rows = []
        for index in range(count):
            first, second = (" ".join(choose.choices(words, k=5)) for _ in range(2))
            label = index % 2
            rows.append(
                {
                    "idx": index,
                    "sentence1": first,
                    "sentence2": first if label else second,
                    "label": label,
                }
            )
        return datasets.Dataset.from_list(rows)

    # not a multiple of the batch size: the last batches are short
    mrpc = datasets.DatasetDict({"train": pairs(76), "validation": pairs(50)})
    load_metric = evaluate.load
    datasets.load_dataset = lambda path, name: mrpc
    evaluate.load = lambda path, name: load_metric(str(metric), name)


def main(module: str, arguments: list[str]) -> None:
    torch.optim.AdamW = torch.optim.Adam = torch.optim.SGD = StandIn
    feed_plain_loops()
    if ".external_deps." in module:
        stay_at_home()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    seen = [(o.is_prepared, o.losses, o.windows) for o in MADE]
    sys.stdout.write(f"\nSEEN {json.dumps(seen)}\n")  # in one piece
    sys.stdout.flush()
    if dist.is_initialized():
        dist.barrier()
    os._exit(0)  # past the end of gloo's threads, which now and then aborts the process


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

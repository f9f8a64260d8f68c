"""A script for two ranks: Fabric with FSDP2, four micro-batches a step; what the optimizer saw."""

import logging
import sys

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from ranks import leave
from torch.distributed.fsdp import fully_shard

from dwmgrad import DWMGrad

logging.disable(logging.INFO)
torch.set_num_threads(1)
strategy = ModelParallelStrategy(
    lambda model, mesh: fully_shard(model, mesh=mesh["data_parallel"]),
    data_parallel_size=2,
    tensor_parallel_size=1,
)
fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
fabric.launch()
model = fabric.setup_module(torch.nn.Linear(6, 5))
inner = DWMGrad(model.parameters(), lr=1e-2, missing_loss="error")
optimizer = fabric.setup_optimizers(inner)
seen = []
for step in range(2):
    total = torch.zeros(())
    for number in range(4):
        with fabric.no_backward_sync(model, enabled=step == 0 and number < 3):
            loss = model(torch.full((2, 6), float(fabric.global_rank + number))).square().mean() / 4
            fabric.backward(loss)
        total += loss.detach()
    optimizer.step()
    optimizer.zero_grad()
    torch.distributed.all_reduce(total)
    seen.append((inner.param_groups[0]["micro_batches"], inner.last_loss, total.item() / 2))
leave(seen, sys.argv[1])

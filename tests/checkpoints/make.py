"""Writes a checkpoint of the present schema, to be committed once per released schema.

python tests/checkpoints/make.py tests/checkpoints/schema-1.pt
"""

import sys

import torch

from dwmgrad import DWMGrad

BEYOND = {
    "loss_smoothing": 0.8,
    "bias_correction": True,
    "normalize_momentum": True,
    "second_moment_window": 40,
    "loss_limit": 0.3,
    "limit_growth": 0.5,
    "limit_slope": 4.0,
    "loss_guard": 3.0,
}


def build(**arguments: object) -> tuple[list[torch.Tensor], DWMGrad]:
    """Two groups, three parameters of two dtypes; nothing random."""
    params = [torch.linspace(-1, 1, n).requires_grad_() for n in (6, 4)]
    params.append(torch.linspace(-1, 1, 5, dtype=torch.bfloat16).requires_grad_())
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 0.03}]
    arguments |= {"lr": 0.01, "max_window": 20, "momentum": 0.8, "window_signal": "increase"}
    return params, DWMGrad(groups, **arguments)  # type: ignore[arg-type]


def train(params: list[torch.Tensor], optimizer: DWMGrad, begin: int, end: int) -> None:
    """Steps `begin` to `end` of a fixed course of gradients and losses."""
    for step in range(begin, end):
        for index, param in enumerate(params):
            wave = torch.arange(param.numel()) + step * (index + 1)
            param.grad = torch.sin(wave.double()).to(param.dtype)
        optimizer.step(loss=2.0 + (step * 7 % 5 - 0.25 * step) / 4)


def main(path: str) -> None:
    params, optimizer = build(**BEYOND)
    train(params, optimizer, 0, 12)
    saved = {
        "params": [p.detach().clone() for p in params],
        "optimizer": {
            "state": {
                key: {name: buffer.clone() for name, buffer in buffers.items()}
                for key, buffers in optimizer.state_dict()["state"].items()
            },
            "param_groups": [dict(group) for group in optimizer.state_dict()["param_groups"]],
        },
    }
    train(params, optimizer, 12, 30)
    saved["then"] = [p.detach().clone() for p in params]
    saved["windows_then"] = [optimizer.window, optimizer.last_loss]
    torch.save(saved, path)


if __name__ == "__main__":
    main(sys.argv[1])

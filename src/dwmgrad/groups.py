"""Parameter groups for loops without a Trainer: biases and norms do not decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of a model's trained parameters: with and without weight decay.

    Biases and the parameters of norms do not decay, as in Hugging Face's Trainer. A bias has `bias`
    in its name. A norm is a module whose class has `norm` in its name: `LayerNorm`,
    `LlamaRMSNorm`, `BatchNorm2d`. The number of dimensions is not asked, because FSDP1 and ZeRO-3
    flatten parameters. Frozen parameters are left out, and tied ones appear once.

    Args:
        model: a module, before or after FSDP2, DDP or PEFT has wrapped it. FSDP1 needs
            `use_orig_params=True`.
        weight_decay: of the first group, at least 0. The second group has 0.

    Returns:
        Groups for `DWMGrad` or any other torch optimizer. Either may be empty.

    Raises:
        TypeError: if `model` is no module.
        ValueError: if `weight_decay` is negative, no parameter is trained, or FSDP1 has flattened
            biases and weights into one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
    decays: dict[nn.Parameter, bool] = {}
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(path, recurse=False):
            if name.endswith("_flat_param"):
                raise ValueError(f"{name} has biases and weights in one: use_orig_params=True")
            if parameter.requires_grad:
                decays.setdefault(parameter, not is_norm and "bias" not in name.lower())
    if not decays:
        raise ValueError("model has no parameter with requires_grad=True")
    return [
        {"params": [p for p, decay in decays.items() if decay], "weight_decay": weight_decay},
        {"params": [p for p, decay in decays.items() if not decay], "weight_decay": 0.0},
    ]

"""How tests call the kernels for tensors of their own, without an optimizer."""

from torch import Tensor

from dwmgrad.kernels import Coefficients, Overlaps, Tensors, prepare, run


def update(tensors: Tensors, c: Coefficients) -> list[bool | Tensor]:
    """One step of all tensors, each with the kernel that the library chooses for it."""
    rows = list(zip(*tensors, strict=True))
    (buckets,) = prepare([rows], Overlaps())
    return run(buckets, c)

"""Whether the CPU kernel computes here what it does everywhere, bit by bit; needs torch alone.

    python tests/kernel_digest.py

Prints the library that was loaded and a digest for each dtype. Ends with 1 if there is no library
or if it computes other bits. The wheels' workflow runs this on every platform.
"""

import hashlib
import json
import sys

import torch

from dwmgrad import kernels, state
from dwmgrad.kernels import Blockwise, Coefficients, Overlaps, Tensors, native

RECORDED = {
    torch.float32: "ac6785168e8f45353c15e9aaf6382078e4c14b53cc2696d10a2fa1b100fd289b",
    torch.bfloat16: "6d554672c93ff4aee2bd7f2951cd8afdd6ef795d76be2fadee18f6905e2a3bee",
}
SIZES = [1, 3, 255, 257, 4097, 40000]
STEPS = 20


def numbers(size: int, seed: int) -> torch.Tensor:
    """Fixed numbers between -1/2 and 1/2, exact in float32, with some that cannot be squared."""
    whole = (torch.arange(size) + 1) * (2654435761 + 2 * seed) >> 5
    found = (whole % 65536).float() / 65536 - 0.5
    if size > 1000:
        found[seed % 1000] = 1e30
    return found


def digest(dtype: torch.dtype) -> str:
    """Of all parameters, states and norms after `STEPS` steps, with every kind of state."""
    found = hashlib.sha256()
    for state_dtype in ("float32", "bfloat16", "int8"):
        for rounds in (False, True):
            rows = []
            for place, size in enumerate(SIZES):
                param = numbers(size, 7).clamp(-1, 1).to(dtype)
                buffers = state.buffers_of(state.create(param, state_dtype))
                rows.append((param, torch.zeros_like(param), *buffers, place))
            tensors = Tensors.of(rows)
            for step in range(STEPS):
                for grad in tensors.grads:
                    grad.copy_(numbers(grad.numel(), step))
                window = 1 + step % 10
                rates = (1e-2, 1 - 1 / window, 0.09 * window, 1e-8, 1e-4)
                c = Coefficients(*rates, step, rounds, rounds)
                (buckets,) = kernels.prepare([rows], Overlaps())
                norms = [norm for own, _ in kernels.squared_norms(buckets, c) for norm in own]
                found.update(json.dumps([float(norm).hex() for norm in norms]).encode())
                kernels.run(buckets, c)
            for column in (tensors.params, tensors.momentum_buffers, tensors.square_avgs):
                for entry in column:
                    for part in entry if isinstance(entry, Blockwise) else (entry,):
                        found.update(bytes(part.flatten().view(torch.uint8).tolist()))
    return found.hexdigest()


def main() -> int:
    """Prints what was found; returns the exit code."""
    library = native.library()
    found = {dtype: digest(dtype) for dtype in RECORDED}
    print(getattr(library, "_name", None), *found.values(), sep="\n")
    return int(library is None or found != RECORDED)


if __name__ == "__main__":
    sys.exit(main())

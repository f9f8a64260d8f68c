"""State in fewer bits, in plain PyTorch: what the fast kernels do is tested against this.

Stochastic rounding goes up or down with the probability that makes its mean right (in 8 bits, for
s, the mean of its code), so that small changes are not lost step after step. Its random bits are a
hash of the step, of the parameter's number in its group and of the element's place in memory: a run
gives the same numbers every time, on every data-parallel rank, and after a resume.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .coefficients import Blockwise

BLOCK = 256
"""Elements that share one scale."""
SMALLEST = 4096
"""Tensors with fewer elements keep their state in float32: they cost nothing."""
_LEAST_SCALE = {torch.int8: 2.0**-112, torch.uint8: 2.0**-94}
"""So that the lowest level but 0, (1/127)² or (1/255)⁴ of it, is a normal number."""
_BITS = 0xFFFFFFFF


def hash32(numbers: Tensor) -> Tensor:
    """32 well mixed bits of each number, int64 in and out ("lowbias32" by C. Wellons)."""
    x = numbers & _BITS
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _BITS
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _BITS
    return x ^ (x >> 16)


def random_bits(like: Tensor, noise: Tensor | int, ordinal: int) -> Tensor:
    """32 bits for each element of a tensor, in its shape: the low half for v, the high one for s.

    The bits of the parameter itself are `hash32` of these, the low half.
    """
    # on the host, whatever set_default_device() says
    noise = noise.long() if isinstance(noise, Tensor) else torch.tensor(noise, device="cpu")
    key = hash32(noise ^ hash32(torch.tensor(ordinal, device="cpu"))).to(like.device)
    place = torch.arange(like.numel(), device=like.device)
    dense = torch.empty_like(like, device="meta")  # in channels_last, too, as the fast kernels go
    return hash32(place + key).as_strided(like.shape, dense.stride())


def round_to_bfloat16(values: Tensor, bits: Tensor) -> Tensor:
    """Finite float32 values as bfloat16, rounded up with the probability of their remainder.

    Of the bits, which are int64, the low 16 count.
    """
    whole = values.contiguous().view(torch.int32).to(torch.int64) + (bits & 0xFFFF)
    whole = ((whole + (1 << 31)) % (1 << 32) - (1 << 31)) & ~0xFFFF
    return whole.to(torch.int32).view(torch.float32).bfloat16()


def zeros(like: Tensor) -> tuple[Blockwise, Blockwise]:
    """Empty 8-bit buffers, v and s, for a parameter."""
    blocks = -(-like.numel() // BLOCK)

    def buffer(dtype: torch.dtype) -> Blockwise:
        codes = torch.zeros(like.shape, dtype=dtype, device=like.device)
        return Blockwise(codes, torch.zeros(blocks, dtype=torch.float32, device=like.device))

    return buffer(torch.int8), buffer(torch.uint8)


def decode(buffer: Blockwise) -> Tensor:
    """The buffer in float32: v = scale·(code/127)²·sign, s = scale·(code/255)⁴.

    The powers give small numbers more levels than large ones: within a block, v spans four orders
    of magnitude and s, of which the root is used, nine.
    """
    codes, scales = buffer
    scale = scales.repeat_interleave(BLOCK)[: codes.numel()].reshape(codes.shape)
    x = codes.float()
    if codes.dtype == torch.uint8:
        x = x * (1 / 255)
        x = x * x
        return x * x * scale
    x = x * (1 / 127)
    return x * x.abs() * scale


def encode(buffer: Blockwise, values: Tensor, bits: Tensor) -> None:
    """Writes finite float32 values into the buffer, rounded stochastically between two levels.

    A step adds v to the parameter, so v is right in the mean. It divides by the root of s: there
    the mean of the code is right, which leaves that of 1/√s nearly right, too; and no positive s
    becomes 0, which would make the next step longer by up to the root of the window. Of the bits,
    which are int64, the low 16 count.
    """
    codes, scales = buffer
    flat = values.reshape(-1)
    padded = torch.nn.functional.pad(flat.abs(), (0, scales.numel() * BLOCK - flat.numel()))
    largest = padded.view(-1, BLOCK).amax(1)
    scales.copy_(largest.clamp_min(_LEAST_SCALE[codes.dtype]))

    def of_elements(numbers: Tensor) -> Tensor:
        return numbers.repeat_interleave(BLOCK)[: flat.numel()]

    chance = (bits.reshape(-1) & 0xFFFF).float() * (1 / 65536)
    if codes.dtype == torch.uint8:
        # 255·share^¼; the inverse of float32's largest number alone would not be a normal number
        code = (flat * of_elements(16 / scales)).sqrt().sqrt() * 127.5
        level = code.floor().clamp_max(254.0)
        level = level + (code - level > chance)
        level = torch.where(flat > 0, level.clamp_min(1.0), level)
    else:
        share = flat.abs() * of_elements(1 / scales)
        level = (share.sqrt() * 127).floor().clamp_max(126.0)
        low, high = (level * (1 / 127)).square(), ((level + 1) * (1 / 127)).square()
        level = level + (share - low > chance * (high - low))
        level = torch.where(flat < 0, -level, level)
    codes.copy_(level.reshape(codes.shape))

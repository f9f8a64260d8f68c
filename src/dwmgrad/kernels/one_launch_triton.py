"""The kernel of `one_launch.py`, in Triton's language. Imported only where Triton is installed.

What it must compute is defined by reference.py and low_bit.py; native.c does the same on the CPU.
"""

import triton
import triton.language as tl

COLUMNS = tl.constexpr(8)
"""Of the table, for each tensor: the addresses of p, v, s and of the scales of v and s, its number
of elements, the number of pieces of the tensors before it, and its ordinal."""
SCALED = tl.constexpr(256)
"""Elements that share one scale: low_bit.BLOCK."""
ROWS = tl.constexpr(4)
"""Rows of that many elements in a block, which is worked on at once."""
BLOCKS = tl.constexpr(8)
"""Blocks in a piece, which is one program instance's share."""


@triton.jit
def _hash32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _pointer(address, DTYPE: tl.constexpr, WHOLE: tl.constexpr):
    if DTYPE == tl.float32:  # Triton 3.1 takes no name in place of these
        pointer = address.to(tl.pointer_type(tl.float32))
    elif DTYPE == tl.bfloat16:
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    elif DTYPE == tl.float16:
        pointer = address.to(tl.pointer_type(tl.float16))
    elif DTYPE == tl.int8:
        pointer = address.to(tl.pointer_type(tl.int8))
    else:
        pointer = address.to(tl.pointer_type(tl.uint8))
    if WHOLE:  # so that wide loads are right
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _store(pointers, x, bits, mask, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr):
    if DTYPE == tl.bfloat16:  # by hand, as the interpreter cuts off what it should round
        whole = x.to(tl.uint32, bitcast=True)
        if STOCHASTIC:  # up, with the probability of the remainder
            whole += bits & 0xFFFF
        else:  # to the nearest, ties to even
            whole += 0x7FFF + ((whole >> 16) & 1)
        tl.store(pointers, (whole >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointers, x.to(DTYPE), mask=mask)


@triton.jit
def _scale(x, least):
    """The largest magnitude, or more: the lowest level but 0 must be a normal number."""
    largest = tl.max(tl.abs(x), axis=1)
    return tl.where(largest < least, least, largest)


@triton.jit
def _chance(bits):
    return (bits & 0xFFFF).to(tl.int32).to(tl.float32) * (1 / 65536)


@triton.jit
def _store_v(codes, scales, x, bits, mask, has_scale):
    scale = _scale(x, 1.925929944387236e-34)  # 2 ** -112
    share = tl.abs(x) * tl.div_rn(1.0, scale)[:, None]
    level = tl.minimum(tl.floor(tl.sqrt_rn(share) * 127), 126.0)
    low, high = level * (1 / 127), (level + 1) * (1 / 127)
    low, high = low * low, high * high
    level += tl.where(share - low > _chance(bits) * (high - low), 1.0, 0.0)
    tl.store(codes, tl.where(x < 0, -level, level).to(tl.int8), mask=mask)
    tl.store(scales, scale, mask=has_scale)


@triton.jit
def _store_s(codes, scales, x, bits, mask, has_scale):
    scale = _scale(x, 5.048709793414476e-29)  # 2 ** -94
    code = tl.sqrt_rn(tl.sqrt_rn(x * tl.div_rn(16.0, scale)[:, None])) * 127.5
    level = tl.minimum(tl.floor(code), 254.0)
    level += tl.where(code - level > _chance(bits), 1.0, 0.0)
    level = tl.where((level < 1) & (x > 0), 1.0, level)
    tl.store(codes, level.to(tl.int32).to(tl.uint8), mask=mask)
    tl.store(scales, scale, mask=has_scale)


@triton.jit
def _decoded_s(codes, scales):
    x = codes * (1 / 255)
    x = x * x
    return x * x * scales[:, None]


@triton.jit
def _block(
    entry, grad, at, size, vector, skipped,
    PARAM: tl.constexpr, STATE: tl.constexpr,
    STOCHASTIC_STATE: tl.constexpr, STOCHASTIC_PARAMS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The rule for the elements from `at` on. WHOLE: a block has no end, and all is aligned."""
    EIGHT_BITS: tl.constexpr = STATE == tl.int8
    SQUARES: tl.constexpr = tl.uint8 if EIGHT_BITS else STATE
    row = tl.arange(0, ROWS)
    index = row[:, None] * SCALED + tl.arange(0, SCALED)[None, :]
    left = tl.minimum(size - at, ROWS * SCALED).to(tl.int32)
    mask = tl.full([ROWS, SCALED], True, tl.int1) if WHOLE else index < left
    has_scale = row * SCALED < left

    p_at = _pointer(tl.load(entry), PARAM, WHOLE) + at + index
    g_at = _pointer(grad, PARAM, WHOLE) + at + index
    v_at = _pointer(tl.load(entry + 1), STATE, WHOLE) + at + index
    s_at = _pointer(tl.load(entry + 2), SQUARES, WHOLE) + at + index
    old_p = tl.load(p_at, mask=mask, other=0).to(tl.float32)
    g = tl.load(g_at, mask=mask, other=0).to(tl.float32)
    old_v = tl.load(v_at, mask=mask, other=0).to(tl.float32)
    old_s = tl.load(s_at, mask=mask, other=0).to(tl.float32)
    if EIGHT_BITS:
        v_scales = _pointer(tl.load(entry + 3), tl.float32, False) + at // SCALED + row
        s_scales = _pointer(tl.load(entry + 4), tl.float32, False) + at // SCALED + row
        x = old_v * (1 / 127)
        old_v = x * tl.abs(x) * tl.load(v_scales, mask=has_scale, other=0)[:, None]
        old_s = _decoded_s(old_s, tl.load(s_scales, mask=has_scale, other=0))

    step_size, decay, keep = tl.load(vector), tl.load(vector + 1), tl.load(vector + 2)
    momentum, eps, shrink = tl.load(vector + 3), tl.load(vector + 4), tl.load(vector + 5)
    g = g * tl.load(vector + 6)
    s = old_s * decay + keep * g * g
    v = old_v * momentum + tl.div_rn(step_size * g, tl.sqrt_rn(s) + eps)
    p = old_p - shrink * old_p - v
    takes = (g * g < float("inf")) & (s < float("inf"))
    if STATE == tl.bfloat16:  # the largest numbers of these
        takes = takes & (s <= 3.3895313892515355e38)
    elif STATE == tl.float16:
        takes = takes & (s <= 65504.0)
    p = tl.where(takes, p, old_p)
    v = tl.where(takes, v, old_v)
    s = tl.where(takes, s, old_s)
    tl.store(skipped, 1, mask=tl.max(tl.where(mask & (takes == 0), 1, 0)) > 0)

    # whole numbers of 32 bits; the noise comes in two halves, which float32 holds exactly
    noise = tl.load(vector + 8).to(tl.int32) + (tl.load(vector + 9).to(tl.int32) << 16)
    key = _hash32(tl.load(entry + 7).to(tl.uint32))
    key = _hash32(noise.to(tl.uint32, bitcast=True) ^ key) + at.to(tl.uint32)
    bits = _hash32(index.to(tl.uint32) + key)
    if EIGHT_BITS:
        _store_v(v_at, v_scales, v, bits, mask, has_scale)
        _store_s(s_at, s_scales, s, bits >> 16, mask, has_scale)
    else:
        _store(v_at, v, bits, mask, STATE, STOCHASTIC_STATE)
        _store(s_at, s, bits >> 16, mask, STATE, STOCHASTIC_STATE)
    _store(p_at, p, _hash32(bits), mask, PARAM, STOCHASTIC_PARAMS)


@triton.jit
def _share(table, grads, count):
    """A program instance's tensor: its entry, gradient and size; and where its piece is in it."""
    piece = tl.program_id(0)
    low, high = 0, count  # the last tensor that begins at or before this piece
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(table + middle * COLUMNS + 6) <= piece
        low = tl.where(begins, middle, low)
        high = tl.where(begins, high, middle)
    entry = table + low * COLUMNS
    size = tl.load(entry + 5)
    begin = (piece - tl.load(entry + 6)) * (BLOCKS * ROWS * SCALED)
    end = tl.minimum(begin + BLOCKS * ROWS * SCALED, size)
    return entry, tl.load(grads + low), size, begin, end


@triton.jit(do_not_specialize=["count"])
def update(
    table, grads, vector, skipped, count,
    PARAM: tl.constexpr, STATE: tl.constexpr,
    STOCHASTIC_STATE: tl.constexpr, STOCHASTIC_PARAMS: tl.constexpr,
):  # fmt: skip
    """One piece of one of `count` tensors; for the arguments see `one_launch.launch`."""
    BLOCK: tl.constexpr = ROWS * SCALED
    entry, grad, size, at, end = _share(table, grads, count)
    end = tl.where(tl.load(vector + 7) != 0, end, at)  # an inactive step touches nothing
    used = tl.load(entry) | tl.load(entry + 1) | tl.load(entry + 2) | grad
    while at < end:
        if (used % 16 == 0) & (at + BLOCK <= size):
            _block(
                entry, grad, at, size, vector, skipped,
                PARAM, STATE, STOCHASTIC_STATE, STOCHASTIC_PARAMS, WHOLE=True,
            )  # fmt: skip
        else:
            _block(
                entry, grad, at, size, vector, skipped,
                PARAM, STATE, STOCHASTIC_STATE, STOCHASTIC_PARAMS, WHOLE=False,
            )  # fmt: skip
        at += BLOCK


@triton.jit
def _norm(
    entry, grad, at, size, vector, PARAM: tl.constexpr, STATE: tl.constexpr, WHOLE: tl.constexpr
):
    """The sum of g²/(√s + ε) over a block's elements, with the mean square that follows."""
    EIGHT_BITS: tl.constexpr = STATE == tl.int8
    SQUARES: tl.constexpr = tl.uint8 if EIGHT_BITS else STATE
    row = tl.arange(0, ROWS)
    index = row[:, None] * SCALED + tl.arange(0, SCALED)[None, :]
    left = tl.minimum(size - at, ROWS * SCALED).to(tl.int32)
    mask = tl.full([ROWS, SCALED], True, tl.int1) if WHOLE else index < left
    g = tl.load(_pointer(grad, PARAM, WHOLE) + at + index, mask=mask, other=0).to(tl.float32)
    s_at = _pointer(tl.load(entry + 2), SQUARES, WHOLE) + at + index
    s = tl.load(s_at, mask=mask, other=0).to(tl.float32)
    if EIGHT_BITS:
        scales = _pointer(tl.load(entry + 4), tl.float32, False) + at // SCALED + row
        s = _decoded_s(s, tl.load(scales, mask=row * SCALED < left, other=0))
    g = g * tl.load(vector + 6)
    square = g * g
    s = s * tl.load(vector + 1) + tl.load(vector + 2) * square
    norm = square / (tl.sqrt(s) + tl.load(vector + 4))
    norm = tl.where(mask & (square < float("inf")), norm, 0.0)
    return tl.sum(tl.sum(norm, axis=1), axis=0)


@triton.jit(do_not_specialize=["count"])
def norms(
    table, grads, vector, sums, count, PARAM: tl.constexpr, STATE: tl.constexpr, WIDE: tl.constexpr
):
    """A piece's share of its tensor's norm; see `one_launch.squared_norms`."""
    BLOCK: tl.constexpr = ROWS * SCALED
    entry, grad, size, at, end = _share(table, grads, count)
    used = tl.load(entry + 2) | grad
    total = tl.full([], 0, WIDE)
    while at < end:
        if (used % 16 == 0) & (at + BLOCK <= size):
            total += _norm(entry, grad, at, size, vector, PARAM, STATE, WHOLE=True).to(WIDE)
        else:
            total += _norm(entry, grad, at, size, vector, PARAM, STATE, WHOLE=False).to(WIDE)
        at += BLOCK
    tl.store(sums + tl.program_id(0), total)


@triton.jit(do_not_specialize=["count", "pieces"])
def totals(table, sums, found, count, pieces, WIDE: tl.constexpr):
    """Each tensor's sum over its pieces, always in the same order."""
    place = tl.program_id(0)
    at = tl.load(table + place * COLUMNS + 6)
    is_last = place + 1 == count
    end = tl.load(table + (place + 1) * COLUMNS + 6, mask=is_last == 0, other=0)
    end = tl.where(is_last, pieces, end)
    lane = tl.arange(0, 256)
    total = tl.full([256], 0, WIDE)
    while at < end:
        total += tl.load(sums + at + lane, mask=at + lane < end, other=0)
        at += 256
    tl.store(found + place, tl.sum(total, axis=0))

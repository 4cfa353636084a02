"""The training step's own kernels on CUDA, in Triton: batch norm with what follows it, and the
depthwise weights' gradients.

A map is [n, h, w, c] in memory (channels_last): here `rows` = n · h · w rows of c channels. Maps
are bf16 or fp32; sums, statistics and all that is small are fp32. Numbers come out the same every
time: no atomics; a sum over many rows is written as one partial sum per split, and the splits are
added in their order by the kernel after.

Each kernel compiles once for all networks: channels, sides and batch are arguments at run time. c
is given as `groups` · ALIGN, so that the compiler knows that c is a multiple of ALIGN (8, or 1 for
other counts, which are a second compilation): 8 channels are one access of 16 bytes in bf16. The
addresses of parameters are not specialised on, because a view of a flat vector starts anywhere.

Offsets within a split or an image are 32-bit, the starts of splits and images 64-bit.
"""

# ruff: noqa: N803  (constants known to the compiler are in capitals, as everywhere in Triton)
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped"
# mypy: disable-error-code="import-not-found,misc"
# Triton compiles these functions and reads their annotations; mypy would hold them against Python's

import triton
import triton.language as tl

# Tiles of 4,096 elements and 8 warps: two accesses of 16 bytes a thread in flight in bf16. 32
# channels are 64 bytes of a row, whole sectors of memory, and waste little on narrow networks.
ROWS, CHANNELS = 128, 32
# Of one image: half the rows, because small maps have few (8x8 fills it).
IMAGE_ROWS = 64
# Partial sums added at a time.
SPLITS = 64
# Tiles of the small layers' weights: squeezed units are few (4 to 100), channels many.
SQUEEZED, EXCITED = 32, 128
# A depthwise kernel's tile is images x taps x channels; taps, a power of two, times images is this.
TAPS_BY_IMAGES = 128


# ---- batch norm, SiLU and the gate of squeeze-and-excitation
#
# y = act(u), u = (z - mean) · rstd · weight + bias per channel (batch norm: Ioffe and Szegedy 2015,
# arXiv:1502.03167, with its gradients in section 3); with a gate e per image and channel
# (squeeze-and-excitation: Hu et al. 2018, arXiv:1709.01507, section 3), the layer after sees y · e.
# `stats` is [2, c]: mean, rstd = 1 / sqrt(variance + eps). A name with d in front is the gradient
# of the loss by what is named after it: du, dweight.


@triton.jit
def _totals(partial, splits, c, channel, SPLITS: tl.constexpr, CHANNELS: tl.constexpr):
    """Both sums of partial [splits, 2, c] over its splits, each [CHANNELS]."""
    first = tl.zeros([SPLITS, CHANNELS], tl.float32)
    second = tl.zeros([SPLITS, CHANNELS], tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        addresses = partial + split[:, None] * 2 * c + channel[None, :]
        inside = (split < splits)[:, None] & (channel < c)[None, :]
        first += tl.load(addresses, mask=inside, other=0.0)
        second += tl.load(addresses + c, mask=inside, other=0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def _statistics(
    z, partial, splits, rows, c, eps, channel, SPLITS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Mean and rstd [CHANNELS] from the partial sums of `moments`."""
    difference_sum, square_sum = _totals(partial, splits, c, channel, SPLITS, CHANNELS)
    origin = tl.load(z + channel, mask=channel < c, other=0.0).to(tl.float32)
    shift = difference_sum / rows
    variance = square_sum / rows - shift * shift
    # rounding can leave less than zero; a NaN stays one
    variance = tl.where(variance < 0, 0.0, variance)
    return origin + shift, tl.rsqrt(variance + eps)


@triton.jit(do_not_specialize=["rows", "groups", "span"])
def moments(
    z, partial, rows, groups, span,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """partial [splits, 2, c]: per split of `span` rows the sums of z - origin and of its square.

    The origin is the channel's first value: shifted by a number within the data, the difference of
    squares loses no digits (Chan, Golub and LeVeque 1983, The American Statistician 37, 242). Grid:
    channel blocks, splits."""
    c = groups * ALIGN
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    split = tl.program_id(1)
    begin = split * span
    count = tl.minimum(span, rows - begin)
    z_split = z + begin.to(tl.int64) * c
    origin = tl.load(z + channel, mask=channel < c, other=0.0).to(tl.float32)
    difference_sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    square_sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < count)[:, None] & (channel < c)[None, :]
        offsets = row[:, None] * c + channel[None, :]
        value = tl.load(z_split + offsets, mask=inside, other=0.0).to(tl.float32)
        difference = tl.where(inside, value - origin[None, :], 0.0)
        difference_sums += difference
        square_sums += difference * difference
    out = partial + split * 2 * c + channel
    tl.store(out, tl.sum(difference_sums, 0), mask=channel < c)
    tl.store(out + c, tl.sum(square_sums, 0), mask=channel < c)


@triton.jit(do_not_specialize=["weight", "bias", "rows", "hw", "groups", "span", "splits"])
def normalise(
    z, partial, stats, weight, bias, residual, gate, y, rows, hw, groups, span, splits, eps,
    SILU: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """y = act(u), then + residual or · gate [n, c] where given.

    With `partial`, stats are computed from it and written by the first split; without, they are
    read. Grid: channel blocks, splits of `span` rows."""
    c = groups * ALIGN
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    split = tl.program_id(1)
    channel_mask = channel < c
    if partial is not None:
        mean, rstd = _statistics(z, partial, splits, rows, c, eps, channel, SPLITS, CHANNELS)
        tl.store(stats + channel, mean, mask=channel_mask & (split == 0))
        tl.store(stats + c + channel, rstd, mask=channel_mask & (split == 0))
    else:
        mean = tl.load(stats + channel, mask=channel_mask, other=0.0)
        rstd = tl.load(stats + c + channel, mask=channel_mask, other=0.0)
    scale = rstd * tl.load(weight + channel, mask=channel_mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    begin = split * span
    count = tl.minimum(span, rows - begin)
    offset = begin.to(tl.int64) * c
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < count)[:, None] & channel_mask[None, :]
        offsets = offset + (row[:, None] * c + channel[None, :])
        value = tl.load(z + offsets, mask=inside, other=0.0).to(tl.float32)
        u = (value - mean[None, :]) * scale[None, :] + shift[None, :]
        if SILU:
            u = u * tl.sigmoid(u)
        if residual is not None:
            u += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
        if gate is not None:
            image = (begin + row) // hw
            u *= tl.load(gate + image[:, None] * c + channel[None, :], mask=inside, other=0.0)
        tl.store(y + offsets, u, mask=inside)


@triton.jit(do_not_specialize=["weight", "bias", "n", "hw", "groups", "span", "splits"])
def pool(
    z, partial, stats, weight, bias, pooled, n, hw, groups, span, splits, eps,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """pooled [n, c]: each image's mean of silu(u); stats by the first program of a channel block.

    y itself is not written: to compute it again costs less than to read it. Grid: channel blocks,
    groups of `span` images."""
    c = groups * ALIGN
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < c
    mean, rstd = _statistics(z, partial, splits, n * hw, c, eps, channel, SPLITS, CHANNELS)
    tl.store(stats + channel, mean, mask=channel_mask & (tl.program_id(1) == 0))
    tl.store(stats + c + channel, rstd, mask=channel_mask & (tl.program_id(1) == 0))
    scale = rstd * tl.load(weight + channel, mask=channel_mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    first_image = tl.program_id(1) * span
    z_image = z + first_image.to(tl.int64) * hw * c
    out = pooled + first_image * c + channel
    for _ in range(0, tl.minimum(span, n - first_image)):
        total = tl.zeros([ROWS, CHANNELS], tl.float32)
        for start in range(0, hw, ROWS):
            row = start + tl.arange(0, ROWS)
            inside = (row < hw)[:, None] & channel_mask[None, :]
            offsets = row[:, None] * c + channel[None, :]
            value = tl.load(z_image + offsets, mask=inside, other=0.0).to(tl.float32)
            u = (value - mean[None, :]) * scale[None, :] + shift[None, :]
            total += tl.where(inside, u * tl.sigmoid(u), 0.0)
        tl.store(out, tl.sum(total, 0) / hw, mask=channel_mask)
        z_image += hw * c
        out += c


@triton.jit
def _product(
    matrix, vector, row, rows, columns, row_stride, column_stride,
    SILU: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows `row` [BLOCK_ROWS] of matrix [rows, columns] @ vector, or @ silu(vector)."""
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        addresses = matrix + row[:, None] * row_stride + column[None, :] * column_stride
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        value = tl.load(vector + column, mask=column < columns, other=0.0)
        if SILU:
            value = value * tl.sigmoid(value)
        total += tl.load(addresses, mask=inside, other=0.0).to(tl.float32) * value[None, :]
    return tl.sum(total, 1)


@triton.jit(do_not_specialize=["w1", "b1", "w2", "b2", "c", "s"])
def excite(
    pooled, w1, b1, w2, b2, squeezed, gate, c, s,
    EXCITED: tl.constexpr, SQUEEZED: tl.constexpr,
):  # fmt: skip
    """squeezed [n, s] = pooled @ w1.T + b1, gate [n, c] = sigmoid(silu(squeezed) @ w2.T + b2).

    w1 [s, c], w2 [c, s]. One program an image does both layers, since either is far less work than
    its launch: what the first writes, the same program reads after a barrier. Grid: images."""
    pooled += tl.program_id(0) * c
    squeezed += tl.program_id(0) * s
    gate += tl.program_id(0) * c
    for start in range(0, s, SQUEEZED):
        unit = start + tl.arange(0, SQUEEZED)
        value = _product(w1, pooled, unit, s, c, c, 1, False, SQUEEZED, EXCITED)
        value += tl.load(b1 + unit, mask=unit < s, other=0.0).to(tl.float32)
        tl.store(squeezed + unit, value, mask=unit < s)
    tl.debug_barrier()  # `squeezed` is in memory for all threads
    for start in range(0, c, EXCITED):
        channel = start + tl.arange(0, EXCITED)
        value = _product(w2, squeezed, channel, c, s, s, 1, True, EXCITED, SQUEEZED)
        value += tl.load(b2 + channel, mask=channel < c, other=0.0).to(tl.float32)
        tl.store(gate + channel, tl.sigmoid(value), mask=channel < c)


@triton.jit
def _silu_slope(u):
    """The derivative of silu(u) = u · sigmoid(u)."""
    sigmoid = tl.sigmoid(u)
    return sigmoid * (1 + u * (1 - sigmoid))


@triton.jit
def _saved(stats, weight, bias, c, channel):
    """mean, rstd, rstd · weight and bias of channels, as the forward pass used them."""
    channel_mask = channel < c
    mean = tl.load(stats + channel, mask=channel_mask, other=0.0)
    rstd = tl.load(stats + c + channel, mask=channel_mask, other=0.0)
    scale = rstd * tl.load(weight + channel, mask=channel_mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    return mean, rstd, scale, shift


@triton.jit(do_not_specialize=["weight", "bias", "hw", "groups"])
def gate_gradient(
    dout, z, stats, weight, bias, gate, dexcited, hw, groups,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dexcited [n, c]: the gradient before the gate's sigmoid, each image's sum of dout · y times
    gate · (1 - gate). Grid: images, channel blocks."""
    c = groups * ALIGN
    image = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < c
    mean, _, scale, shift = _saved(stats, weight, bias, c, channel)
    offset = image.to(tl.int64) * hw * c
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, hw, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < hw)[:, None] & channel_mask[None, :]
        offsets = offset + (row[:, None] * c + channel[None, :])
        value = tl.load(z + offsets, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dout + offsets, mask=inside, other=0.0).to(tl.float32)
        u = (value - mean[None, :]) * scale[None, :] + shift[None, :]
        total += dy * u * tl.sigmoid(u)
    e = tl.load(gate + image * c + channel, mask=channel_mask, other=0.0)
    tl.store(dexcited + image * c + channel, tl.sum(total, 0) * e * (1 - e), mask=channel_mask)


@triton.jit(do_not_specialize=["w1", "w2", "c", "s", "hw"])
def excite_maps_gradient(
    dexcited, squeezed, w1, w2, dsqueezed, dpooled, c, s, hw,
    EXCITED: tl.constexpr, SQUEEZED: tl.constexpr,
):  # fmt: skip
    """dsqueezed [n, s] = dexcited @ w2 · silu'(squeezed); dpooled [n, c] = dsqueezed @ w1 / hw, the
    gradient that each pixel has through the mean. Grid: images."""
    dexcited += tl.program_id(0) * c
    squeezed += tl.program_id(0) * s
    dsqueezed += tl.program_id(0) * s
    dpooled += tl.program_id(0) * c
    for start in range(0, s, SQUEEZED):
        unit = start + tl.arange(0, SQUEEZED)
        value = _product(w2, dexcited, unit, s, c, 1, s, False, SQUEEZED, EXCITED)
        u = tl.load(squeezed + unit, mask=unit < s, other=0.0)
        tl.store(dsqueezed + unit, value * _silu_slope(u), mask=unit < s)
    tl.debug_barrier()  # `dsqueezed` is in memory for all threads
    for start in range(0, c, EXCITED):
        channel = start + tl.arange(0, EXCITED)
        value = _product(w1, dsqueezed, channel, c, s, 1, c, False, EXCITED, SQUEEZED)
        tl.store(dpooled + channel, value / hw, mask=channel < c)


@triton.jit(do_not_specialize=["n", "c", "s"])
def excite_weights_gradient(
    pooled, squeezed, dsqueezed, dexcited, dw1, db1, dw2, db2, n, c, s,
    IMAGES: tl.constexpr, CHANNELS: tl.constexpr, SQUEEZED: tl.constexpr,
):  # fmt: skip
    """dw1 [s, c], db1 [s], dw2 [c, s], db2 [c], summed over the images in fp32.

    Grid: channel blocks, blocks of squeezed units."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    unit = tl.program_id(1) * SQUEEZED + tl.arange(0, SQUEEZED)
    dw1_sums = tl.zeros([SQUEEZED, CHANNELS], tl.float32)
    dw2_sums = tl.zeros([CHANNELS, SQUEEZED], tl.float32)
    db1_sums = tl.zeros([SQUEEZED], tl.float32)
    db2_sums = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, n, IMAGES):
        image = start + tl.arange(0, IMAGES)
        unit_offsets = image[:, None] * s + unit[None, :]
        channel_offsets = image[:, None] * c + channel[None, :]
        in_units = (image < n)[:, None] & (unit < s)[None, :]
        in_channels = (image < n)[:, None] & (channel < c)[None, :]
        u = tl.load(squeezed + unit_offsets, mask=in_units, other=0.0)
        du = tl.load(dsqueezed + unit_offsets, mask=in_units, other=0.0)
        value = tl.load(pooled + channel_offsets, mask=in_channels, other=0.0)
        dgate = tl.load(dexcited + channel_offsets, mask=in_channels, other=0.0)
        # "ieee": fp32 products, where tensor cores would round to 10 bits (and sm_75 has no bf16)
        dw1_sums += tl.dot(tl.trans(du), value, input_precision="ieee")
        dw2_sums += tl.dot(tl.trans(dgate), u * tl.sigmoid(u), input_precision="ieee")
        db1_sums += tl.sum(du, 0)
        db2_sums += tl.sum(dgate, 0)
    unit_mask, channel_mask = unit < s, channel < c
    tl.store(
        dw1 + unit[:, None] * c + channel[None, :],
        dw1_sums,
        mask=unit_mask[:, None] & channel_mask[None, :],
    )
    tl.store(
        dw2 + channel[:, None] * s + unit[None, :],
        dw2_sums,
        mask=channel_mask[:, None] & unit_mask[None, :],
    )
    tl.store(db1 + unit, db1_sums, mask=unit_mask & (tl.program_id(0) == 0))
    tl.store(db2 + channel, db2_sums, mask=channel_mask & (tl.program_id(1) == 0))


@triton.jit
def _before_act(
    dy, gate, dpooled, offsets, image_offsets, inside, centred, scale, shift, SILU: tl.constexpr
):
    """du [ROWS, CHANNELS] from dy; with a gate, the gradient of y is dy · gate + dpooled."""
    du = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
    if gate is not None:
        du *= tl.load(gate + image_offsets, mask=inside, other=0.0)
        du += tl.load(dpooled + image_offsets, mask=inside, other=0.0)
    if SILU:
        du *= _silu_slope(centred * scale[None, :] + shift[None, :])
    return du


@triton.jit(do_not_specialize=["weight", "bias", "rows", "hw", "groups", "span"])
def gradient_sums(
    dy, z, stats, weight, bias, gate, dpooled, partial, rows, hw, groups, span,
    SILU: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """partial [splits, 2, c]: per split the sums of du and of du · (z - mean).

    Grid: channel blocks, splits of `span` rows."""
    c = groups * ALIGN
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    split = tl.program_id(1)
    channel_mask = channel < c
    mean, _, scale, shift = _saved(stats, weight, bias, c, channel)
    begin = split * span
    count = tl.minimum(span, rows - begin)
    offset = begin.to(tl.int64) * c
    du_sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    du_centred_sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < count)[:, None] & channel_mask[None, :]
        offsets = offset + (row[:, None] * c + channel[None, :])
        image_offsets = ((begin + row) // hw)[:, None] * c + channel[None, :]
        centred = tl.load(z + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        du = _before_act(
            dy, gate, dpooled, offsets, image_offsets, inside, centred, scale, shift, SILU
        )
        du = tl.where(inside, du, 0.0)
        du_sums += du
        du_centred_sums += du * centred
    out = partial + split * 2 * c + channel
    tl.store(out, tl.sum(du_sums, 0), mask=channel_mask)
    tl.store(out + c, tl.sum(du_centred_sums, 0), mask=channel_mask)


@triton.jit(do_not_specialize=["weight", "bias", "rows", "hw", "groups", "span", "splits"])
def gradient_maps(
    dy, z, stats, weight, bias, gate, dpooled, partial, dz, dweight, dbias,
    rows, hw, groups, span, splits,
    SILU: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """dz, and by the first split dweight and dbias [c], from the partial sums of `gradient_sums`.

    dz = rstd · weight · (du - sum(du) / rows - (z - mean) · rstd² · sum(du · (z - mean)) / rows).
    Grid: channel blocks, splits of `span` rows."""
    c = groups * ALIGN
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    split = tl.program_id(1)
    channel_mask = channel < c
    du_sum, du_centred_sum = _totals(partial, splits, c, channel, SPLITS, CHANNELS)
    mean, rstd, scale, shift = _saved(stats, weight, bias, c, channel)
    tl.store(dweight + channel, du_centred_sum * rstd, mask=channel_mask & (split == 0))
    tl.store(dbias + channel, du_sum, mask=channel_mask & (split == 0))
    slope = rstd * rstd * du_centred_sum / rows
    level = du_sum / rows
    begin = split * span
    count = tl.minimum(span, rows - begin)
    offset = begin.to(tl.int64) * c
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < count)[:, None] & channel_mask[None, :]
        offsets = offset + (row[:, None] * c + channel[None, :])
        image_offsets = ((begin + row) // hw)[:, None] * c + channel[None, :]
        centred = tl.load(z + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        du = _before_act(
            dy, gate, dpooled, offsets, image_offsets, inside, centred, scale, shift, SILU
        )
        dz_tile = scale[None, :] * (du - level[None, :] - centred * slope[None, :])
        tl.store(dz + offsets, dz_tile, mask=inside)


# ---- the weight gradient of a depthwise convolution, padded by half its kernel


@triton.jit(do_not_specialize=["n", "h", "w", "groups", "ho", "wo", "span", "stride"])
def depthwise_sums(
    x, dy, partial, n, h, w, groups, ho, wo, span, stride,
    KERNEL: tl.constexpr, TAPS: tl.constexpr, ALIGN: tl.constexpr, IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """partial [image blocks · row blocks, KERNEL², c]: the sums of dy · x for each tap.

    A tile is one output pixel of IMAGES images, all taps (TAPS, the next power of two), CHANNELS
    channels: which taps meet the map is the same for every image, so no element computes where it
    is, and the next pixel's taps are mostly in the cache. Grid: channel blocks, image blocks, row
    blocks of `span` output rows."""
    c = groups * ALIGN
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    tap = tl.arange(0, TAPS)
    tap_row, tap_column = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
    image_mask = (image < n)[:, None, None] & (channel < c)[None, None, :]
    x_images = x + image.to(tl.int64)[:, None, None] * (h * w * c) + channel[None, None, :]
    dy_images = dy + image.to(tl.int64)[:, None, None] * (ho * wo * c) + channel[None, None, :]
    # each tap reads dy for itself, the same address from the cache: were it read once and spread,
    # the compiler would move x through shared memory, with a barrier a pixel
    dy_images = tl.broadcast_to(dy_images, [IMAGES, TAPS, CHANNELS])
    first_row = tl.program_id(2) * span
    total = tl.zeros([IMAGES, TAPS, CHANNELS], tl.float32)
    for row in range(first_row, tl.minimum(first_row + span, ho)):
        y = row * stride + tap_row
        in_rows = (tap < KERNEL * KERNEL) & (y >= 0) & (y < h)
        for column in range(0, wo):
            position = column * stride + tap_column
            in_map = in_rows & (position >= 0) & (position < w)
            inside = image_mask & in_map[None, :, None]
            tap_offset = ((y * w + position) * c)[None, :, None]
            value = tl.load(x_images + tap_offset, mask=inside, other=0.0).to(tl.float32)
            gradient = tl.load(dy_images + (row * wo + column) * c, mask=inside, other=0.0)
            total += value * gradient.to(tl.float32)
    split = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
    out = partial + (split * KERNEL * KERNEL + tap)[:, None] * c + channel[None, :]
    inside = (tap < KERNEL * KERNEL)[:, None] & (channel < c)[None, :]
    tl.store(out, tl.sum(total, 0), mask=inside)


@triton.jit(do_not_specialize=["splits", "c", "taps"])
def depthwise_total(partial, dw, splits, c, taps, SPLITS: tl.constexpr, ELEMENTS: tl.constexpr):
    """dw [c, taps]: the sum of partial [splits, taps, c] over its splits. Grid: blocks of
    elements."""
    element = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    element_mask = element < taps * c
    total = tl.zeros([SPLITS, ELEMENTS], tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        offsets = split[:, None] * taps * c + element[None, :]
        total += tl.load(
            partial + offsets, mask=(split < splits)[:, None] & element_mask[None, :], other=0.0
        )
    tl.store(dw + element % c * taps + element // c, tl.sum(total, 0), mask=element_mask)

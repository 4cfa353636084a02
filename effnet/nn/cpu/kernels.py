"""The training step's inner loops on a CPU, compiled by numba: what torch's own kernels leave slow
here.

oneDNN has no fast weight gradient for depthwise 5x5 kernels or for maps of a few pixels (2 to 4 ms
where these loops take 0.2), and batch norm and SiLU as separate operators read and write each map a
dozen times a step.

Every tensor is given by its address: dense float32 in the order N, H, W, C, whose last axis is
contiguous. n, h, w, c are a map's sizes, ho and wo the output's, hw = h · w. A loop that threads
share is cut into `parts` by the number of threads alone, and each part has sums of its own, so
numbers come out the same every time.
"""

# mypy: disable-error-code="call-arg,var-annotated,assignment,no-untyped-call"
# numba compiles these functions; mypy would hold their bodies against Python's types

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numba import njit, prange, set_num_threads

from effnet.nn.cpu.lanes import FAST, floats, fma, inline, load, store, zero

# Floats that an inner loop should have at least, four registers of 16: where a map has fewer
# channels, the loop takes several pixels at once.
_LANES = 64
# Inner loops whose float sums are added to the double sums of their channels: float32 loses digits
# in longer ones. Moments take four rows a loop, gradients one.
_MOMENTS_A_FLUSH, _GRADIENTS_A_FLUSH = 32, 64


def _kernel(function: Callable[..., Any]) -> tuple[Any, Any]:
    """The function compiled for one thread, and for several; kept in numba's cache, where that can
    be written."""
    settings: dict[str, Any] = {
        "fastmath": FAST,
        "error_model": "numpy",
        "nogil": True,
    }
    # numba's cache knows a function by its name, whatever its settings: the second needs another
    shared = FunctionType(function.__code__, function.__globals__, function.__name__)
    shared.__qualname__ = f"{function.__qualname__}_shared"

    def compiled(cache: bool) -> tuple[Any, Any]:
        alone = njit(cache=cache, **settings)(function)
        return alone, njit(cache=cache, parallel=True, **settings)(shared)

    try:
        return compiled(cache=True)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return compiled(cache=False)


def call(kernel: tuple[Any, Any], *args: Any) -> None:
    """Run a kernel on as many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads > 1:
        set_num_threads(threads)
    kernel[threads > 1](*args)


# ---- the weight gradient of a depthwise convolution, padded by half its kernel
#
# x [n, h, w, c], dy [n, ho, wo, c] → dw [k², c], for a kernel of k and a stride of s. The loops of
# a tap run over the whole map with sixteen channels in one register, and five taps of a row share
# each load of dy: a row of the kernels of 3 and 5, and part of one of 7.


@inline
def _tap_row(
    x: int, dy: int, dw: int, n: int, h: int, w: int, c: int, ho: int, wo: int, k: int, s: int,
    c0: int, i: int, j0: int,
) -> None:  # fmt: skip
    """Five taps (row i, columns from j0) of 16 channels from c0, each summed in a register of its
    own. Registers have no array to be indexed in: hence the five names."""
    taps = min(5, k - j0)
    a0, a1, a2, a3, a4 = zero(), zero(), zero(), zero(), zero()
    for image in range(n):
        for row in range(ho):
            y = row * s + i - k // 2
            if y < 0 or y >= h:
                continue  # padding
            of_x, of_g = (image * h + y) * w * c + c0, (image * ho + row) * wo * c + c0
            for column in range(wo):
                g = load(dy, of_g + column * c)
                at = column * s + j0 - k // 2
                b = of_x + at * c
                if at >= 0 and at + 4 < w and taps == 5:  # no tap meets the padding
                    a0 = fma(load(x, b), g, a0)
                    a1 = fma(load(x, b + c), g, a1)
                    a2 = fma(load(x, b + 2 * c), g, a2)
                    a3 = fma(load(x, b + 3 * c), g, a3)
                    a4 = fma(load(x, b + 4 * c), g, a4)
                else:
                    if 0 <= at < w:
                        a0 = fma(load(x, b), g, a0)
                    if taps > 1 and 0 <= at + 1 < w:
                        a1 = fma(load(x, b + c), g, a1)
                    if taps > 2 and 0 <= at + 2 < w:
                        a2 = fma(load(x, b + 2 * c), g, a2)
                    if taps > 3 and 0 <= at + 3 < w:
                        a3 = fma(load(x, b + 3 * c), g, a3)
                    if taps > 4 and 0 <= at + 4 < w:
                        a4 = fma(load(x, b + 4 * c), g, a4)
    o = (i * k + j0) * c + c0
    store(dw, o, a0)
    if taps > 1:
        store(dw, o + c, a1)
    if taps > 2:
        store(dw, o + 2 * c, a2)
    if taps > 3:
        store(dw, o + 3 * c, a3)
    if taps > 4:
        store(dw, o + 4 * c, a4)


def _depthwise(
    x: int, dy: int, dw: int, n: int, h: int, w: int, c: int, ho: int, wo: int, k: int, s: int
) -> None:
    """dw from x and dy. c is at least 16."""
    for b in prange((c + 15) // 16):
        # the last 16 channels overlap those before: both come to the same sums
        c0 = min(b * 16, c - 16)
        for i in range(k):
            for j0 in range(0, k, 5):
                _tap_row(x, dy, dw, n, h, w, c, ho, wo, k, s, c0, i, j0)


# ---- batch norm, SiLU and the gate of squeeze-and-excitation
#
# y = act(scale · z + shift) with scale = gamma / std, shift = beta - mean · scale, all per channel;
# with a gate e per image and channel, the layer after sees y · e. `stats` is [4, c]: mean, 1 / std,
# scale, shift.

# Constants of the exponential function, in float32: a Python float would make every sum double.
_LOG2E, _LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
_E2, _E3, _E4, _E5, _E6 = (np.float32(1 / f) for f in (2, 6, 24, 120, 720))  # 1/2!, 1/3!, ...
_ONE = np.float32(1)
_LIMIT = np.float32(87)  # exp(88) is the last that float32 holds


@inline
def _sigmoid(u: Any) -> Any:
    """1 / (1 + exp(-u)). A call of exp would keep the loop from being vectorised, so it is written
    out: exp(-u) = 2^k · exp(r) with |r| <= ln 2 / 2, and exp(r) by its series to the sixth power:
    errors below 1e-6 of 1."""
    x = -u
    x = -_LIMIT if x < -_LIMIT else x
    x = _LIMIT if x > _LIMIT else x
    k = np.rint(x * _LOG2E)
    r = x - k * _LN2
    p = ((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r * r + r + _ONE
    # 2^k by its bits: the exponent of a float32 stands from bit 23 on, 127 above itself
    return _ONE / (_ONE + p * np.int32((np.int32(k) + 127) << 23).view(np.float32))


@inline
def _tile(out: Any, values: Any, times: int) -> None:
    """Fill `out` with `values` (one for each channel), so many times over."""
    c = len(values)
    for t in range(times):
        for i in range(c):
            out[t * c + i] = values[i]


@inline
def _flush(sums: Any, lanes: Any, c: int) -> None:
    """Add float lanes to the double sums of their channels, and zero them."""
    for t in range(0, len(lanes), c):
        for i in range(c):
            sums[i] += lanes[t + i]
            lanes[t + i] = 0


@inline
def _moments(z: Any, origin: Any, c: int, sums: Any) -> None:
    """Add to `sums` [2, c] the sums of (z - origin) and of its square per channel. An origin within
    the data loses no digits in the difference of squares that becomes the variance.

    Four rows of lanes a loop: their loads overlap, where one after the other would wait for the
    same sum."""
    length = max(1, _LANES // c) * c
    k = np.empty(length, np.float32)
    a, b = np.zeros(length, np.float32), np.zeros(length, np.float32)
    _tile(k, origin, length // c)
    done, since = 0, 0
    while done < len(z):
        if done + 4 * length <= len(z):
            z0 = z[done : done + length]
            z1 = z[done + length : done + 2 * length]
            z2 = z[done + 2 * length : done + 3 * length]
            z3 = z[done + 3 * length : done + 4 * length]
            for i in range(length):
                d0, d1, d2, d3 = z0[i] - k[i], z1[i] - k[i], z2[i] - k[i], z3[i] - k[i]
                a[i] += (d0 + d1) + (d2 + d3)
                b[i] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
            done += 4 * length
        else:
            part = z[done : done + length]
            for i in range(len(part)):
                d = part[i] - k[i]
                a[i] += d
                b[i] += d * d
            done += length
        since += 1
        if since == _MOMENTS_A_FLUSH:
            _flush(sums[0], a, c)
            _flush(sums[1], b, c)
            since = 0
    _flush(sums[0], a, c)
    _flush(sums[1], b, c)


@inline
def _normalise(z: Any, y: Any, scale: Any, shift: Any) -> None:
    for i in range(len(z)):
        y[i] = z[i] * scale[i] + shift[i]


@inline
def _normalise_and_add(z: Any, y: Any, scale: Any, shift: Any, residual: Any) -> None:
    for i in range(len(z)):
        y[i] = z[i] * scale[i] + shift[i] + residual[i]


@inline
def _normalise_silu(z: Any, y: Any, scale: Any, shift: Any) -> None:
    for i in range(len(z)):
        u = z[i] * scale[i] + shift[i]
        y[i] = u * _sigmoid(u)


@inline
def _normalise_silu_and_sum(z: Any, y: Any, scale: Any, shift: Any, total: Any) -> None:
    for i in range(len(z)):
        u = z[i] * scale[i] + shift[i]
        u = u * _sigmoid(u)
        y[i] = u
        total[i] += u


def _forward(
    z_at: int, y_at: int, residual_at: int, pool_at: int, gamma_at: int, beta_at: int,
    mean_at: int, var_at: int, stats_at: int, n: int, hw: int, c: int,
    eps: float, momentum: float, training: bool, silu: bool, parts: int,
) -> None:  # fmt: skip
    """y from z; `stats` from the batch in training, which also moves the running averages by
    `momentum`, else from them.

    Where `residual` is not 0 it is added after the norm; where `pool` [n, c] is not 0 it is filled
    with the mean of y over each map, and the activation is SiLU."""
    z, y, rows = floats(z_at, n * hw * c), floats(y_at, n * hw * c), n * hw
    mean, var, stats = floats(mean_at, c), floats(var_at, c), floats(stats_at, 4 * c)
    gamma, beta = floats(gamma_at, c), floats(beta_at, c)
    if training:
        sums = np.zeros((parts, 2, c))
        for p in prange(parts):
            _moments(z[rows * p // parts * c : rows * (p + 1) // parts * c], z[:c], c, sums[p])
        for i in range(c):
            first = second = 0.0
            for p in range(parts):
                first += sums[p, 0, i]
                second += sums[p, 1, i]
            first /= rows
            m, v = z[i] + first, max(second / rows - first * first, 0.0)
            if second != second:  # max would have swallowed a NaN, and a diverged run gone unseen
                v = second
            stats[i], stats[c + i] = m, 1 / np.sqrt(v + eps)
            mean[i] += momentum * (m - mean[i])
            # the running variance is the unbiased one, as torch's
            var[i] += momentum * (v * rows / max(rows - 1, 1) - var[i])
    else:
        for i in range(c):
            stats[i], stats[c + i] = mean[i], 1 / np.sqrt(var[i] + eps)
    for i in range(c):
        stats[2 * c + i] = gamma[i] * stats[c + i]
        stats[3 * c + i] = beta[i] - stats[i] * stats[2 * c + i]
    for p in prange(parts):
        # without a pool the images' borders mean nothing: each part is one long map
        first, last, size = n * p // parts, n * (p + 1) // parts, hw
        if pool_at == 0:
            first, last, size = p, p + 1, 0
        times = max(1, min(_LANES // c, hw if pool_at else _LANES))
        length = times * c
        scale, shift = np.empty(length, np.float32), np.empty(length, np.float32)
        total = np.empty(length, np.float32)
        _tile(scale, stats[2 * c : 3 * c], times)
        _tile(shift, stats[3 * c :], times)
        for image in range(first, last):
            low, high = image * size * c, (image + 1) * size * c
            if pool_at == 0:
                low, high = rows * p // parts * c, rows * (p + 1) // parts * c
            else:
                total[:] = 0
            for at in range(low, high, length):
                zz, yy = z[at : min(at + length, high)], y[at : min(at + length, high)]
                if pool_at:
                    _normalise_silu_and_sum(zz, yy, scale, shift, total)
                elif silu:
                    _normalise_silu(zz, yy, scale, shift)
                elif residual_at:
                    _normalise_and_add(zz, yy, scale, shift, floats(residual_at + 4 * at, length))
                else:
                    _normalise(zz, yy, scale, shift)
            if pool_at:
                pool = floats(pool_at + 4 * image * c, c)
                pool[:] = 0
                for t in range(times):
                    for i in range(c):
                        pool[i] += total[t * c + i]
                for i in range(c):
                    pool[i] /= np.float32(hw)


def _gate(y_at: int, gate_at: int, out_at: int, n: int, hw: int, c: int, parts: int) -> None:
    """out = y · gate; gate [n, c]."""
    for p in prange(parts):
        for image in range(n * p // parts, n * (p + 1) // parts):
            gate = floats(gate_at + 4 * image * c, c)
            for row in range(image * hw, (image + 1) * hw):
                y, out = floats(y_at + 4 * row * c, c), floats(out_at + 4 * row * c, c)
                for i in range(c):
                    out[i] = y[i] * gate[i]


def _gate_backward(
    dout_at: int, y_at: int, dgate_at: int, n: int, hw: int, c: int, parts: int
) -> None:
    """dgate [n, c]: the sum over each map of dout · y."""
    for p in prange(parts):
        for image in range(n * p // parts, n * (p + 1) // parts):
            dgate = floats(dgate_at + 4 * image * c, c)
            dgate[:] = 0
            for row in range(image * hw, (image + 1) * hw):
                y, dout = floats(y_at + 4 * row * c, c), floats(dout_at + 4 * row * c, c)
                for i in range(c):
                    dgate[i] += y[i] * dout[i]


@inline
def _silu_slope(u: Any) -> Any:
    s = _sigmoid(u)
    return s * (_ONE + u * (_ONE - s))


def _backward(
    dy_at: int, z_at: int, dz_at: int, gate_at: int, dpool_at: int, gamma_at: int, stats_at: int,
    dgamma_at: int, dbeta_at: int, n: int, hw: int, c: int, silu: bool, parts: int,
) -> None:  # fmt: skip
    """dz, dgamma, dbeta from dy. With a gate (dy is then of y · gate), y's gradient is dy · gate +
    dpool / hw.

    Two passes: the first sums d, the gradient of u = scale · z + shift, and d · (z - mean) per
    channel, and leaves d in dz where an activation had to be undone; the second makes dz of it."""
    rows = n * hw
    z, dy, dz = floats(z_at, rows * c), floats(dy_at, rows * c), floats(dz_at, rows * c)
    stats, dgamma, dbeta = floats(stats_at, 4 * c), floats(dgamma_at, c), floats(dbeta_at, c)
    sums = np.zeros((parts, 2, c))
    for p in prange(parts):
        first, last = n * p // parts, n * (p + 1) // parts
        times = max(1, min(_LANES // c, hw if gate_at else _LANES))
        length = times * c
        a, b = np.zeros(length, np.float32), np.zeros(length, np.float32)
        mean = np.empty(length, np.float32)
        scale, shift = np.empty(length, np.float32), np.empty(length, np.float32)
        gate, extra = np.empty(length, np.float32), np.empty(length, np.float32)
        _tile(mean, stats[:c], times)
        _tile(scale, stats[2 * c : 3 * c], times)
        _tile(shift, stats[3 * c :], times)
        since = 0
        if gate_at == 0:
            first, last = p, p + 1
        for image in range(first, last):
            low, high = image * hw * c, (image + 1) * hw * c
            if gate_at:
                _tile(gate, floats(gate_at + 4 * image * c, c), times)
                _tile(extra, floats(dpool_at + 4 * image * c, c), times)
                for i in range(length):
                    extra[i] /= np.float32(hw)
            else:
                low, high = rows * p // parts * c, rows * (p + 1) // parts * c
            for at in range(low, high, length):
                zz, gg = z[at : min(at + length, high)], dy[at : min(at + length, high)]
                dd = dz[at : min(at + length, high)]
                if gate_at:
                    for i in range(len(zz)):
                        u = zz[i] * scale[i] + shift[i]
                        d = (gg[i] * gate[i] + extra[i]) * _silu_slope(u)
                        dd[i] = d
                        a[i] += d
                        b[i] += d * (zz[i] - mean[i])
                elif silu:
                    for i in range(len(zz)):
                        u = zz[i] * scale[i] + shift[i]
                        d = gg[i] * _silu_slope(u)
                        dd[i] = d
                        a[i] += d
                        b[i] += d * (zz[i] - mean[i])
                else:
                    for i in range(len(zz)):
                        a[i] += gg[i]
                        b[i] += gg[i] * (zz[i] - mean[i])
                since += 1
                if since == _GRADIENTS_A_FLUSH:
                    _flush(sums[p, 0], a, c)
                    _flush(sums[p, 1], b, c)
                    since = 0
        _flush(sums[p, 0], a, c)
        _flush(sums[p, 1], b, c)
    # dz = scale · (d - sum(d) / rows - (z - mean) / std² · sum(d · (z - mean)) / rows), written as
    # scale · d + factors[0] · z + factors[1]
    factors = np.empty((2, c), np.float32)
    for i in range(c):
        first = second = 0.0
        for p in range(parts):
            first += sums[p, 0, i]
            second += sums[p, 1, i]
        dgamma[i], dbeta[i] = second * stats[c + i], first
        factors[0, i] = -stats[2 * c + i] * stats[c + i] * stats[c + i] * second / rows
        factors[1, i] = -stats[2 * c + i] * first / rows - factors[0, i] * stats[i]
    for p in prange(parts):
        times = max(1, _LANES // c)
        length = times * c
        of_d, of_z = np.empty(length, np.float32), np.empty(length, np.float32)
        constant = np.empty(length, np.float32)
        _tile(of_d, stats[2 * c : 3 * c], times)
        _tile(of_z, factors[0], times)
        _tile(constant, factors[1], times)
        high = rows * (p + 1) // parts * c
        for at in range(rows * p // parts * c, high, length):
            zz, dd = z[at : min(at + length, high)], dz[at : min(at + length, high)]
            if silu:
                for i in range(len(zz)):
                    dd[i] = of_d[i] * dd[i] + of_z[i] * zz[i] + constant[i]
            else:
                gg = dy[at : min(at + length, high)]
                for i in range(len(zz)):
                    dd[i] = of_d[i] * gg[i] + of_z[i] * zz[i] + constant[i]


depthwise = _kernel(_depthwise)
forward = _kernel(_forward)
gate = _kernel(_gate)
gate_backward = _kernel(_gate_backward)
backward = _kernel(_backward)

"""The training step's inner loops on a CPU, compiled by numba: what torch's own kernels leave slow
here.

oneDNN has no fast weight gradient for depthwise 5x5 kernels or for maps of a few pixels (2 to 4 ms
where these loops take 0.2), and batch norm and SiLU as separate operators read and write each map a
dozen times a step.

Every tensor is given by its address: dense float32 in the order N, H, W, C, whose last axis is
contiguous. The parts of a loop that threads share are cut by the number of threads alone, so sums
come out the same every time.
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

_LANES = 64  # floats an inner loop should have at least: narrow maps take several pixels at once


def _kernel(function: Callable[..., Any]) -> tuple[Any, Any]:
    """(for one thread, for several)."""
    settings: dict[str, Any] = {
        "fastmath": FAST,
        "error_model": "numpy",
        "cache": True,
        "nogil": True,
    }
    # numba's cache knows a function by its name, whatever its settings
    shared = FunctionType(function.__code__, function.__globals__, function.__name__)
    shared.__qualname__ = f"{function.__qualname__}_shared"
    return njit(**settings)(function), njit(parallel=True, **settings)(shared)


def call(kernel: tuple[Any, Any], *args: Any) -> None:
    """Run a kernel on as many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads > 1:
        set_num_threads(threads)
    kernel[threads > 1](*args)


# ---- the weight gradient of a depthwise convolution


@inline
def _tap_row(x: int, dy: int, dw: int, n: int, h: int, w: int, c: int, ho: int, wo: int, k: int, s: int, c0: int,
             i: int, j0: int) -> None:  # fmt: skip
    """Five taps (row i, columns from j0) of 16 channels from c0, each summed in a register of its
    own."""
    taps = min(5, k - j0)
    a0, a1, a2, a3, a4 = zero(), zero(), zero(), zero(), zero()
    for image in range(n):
        for row in range(ho):
            y = row * s + i - k // 2
            if y < 0 or y >= h:
                continue
            of_x, of_g = (image * h + y) * w * c + c0, (image * ho + row) * wo * c + c0
            for column in range(wo):
                g = load(dy, of_g + column * c)
                at = column * s + j0 - k // 2
                b = of_x + at * c
                if at >= 0 and at + 4 < w and taps == 5:
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

_LOG2E, _LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
_E2, _E3, _E4, _E5, _E6 = (np.float32(1 / f) for f in (2, 6, 24, 120, 720))
_ONE, _LIMIT = np.float32(1), np.float32(87)


@inline
def _sigmoid(u: Any) -> Any:
    """exp(-u) = 2^k · exp(r) with |r| <= ln 2 / 2, exp(r) by its series: errors below 1e-6 of 1."""
    x = -u
    x = -_LIMIT if x < -_LIMIT else x
    x = _LIMIT if x > _LIMIT else x
    k = np.rint(x * _LOG2E)
    r = x - k * _LN2
    p = ((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r * r + r + _ONE
    return _ONE / (_ONE + p * np.int32((np.int32(k) + 127) << 23).view(np.float32))


@inline
def _tiled(out: Any, values: Any, times: int) -> None:
    c = len(values)
    for t in range(times):
        for i in range(c):
            out[t * c + i] = values[i]


@inline
def _flush(sums: Any, lanes: Any, c: int) -> None:
    """Float lanes into the double sums of their channels."""
    for t in range(0, len(lanes), c):
        for i in range(c):
            sums[i] += lanes[t + i]
            lanes[t + i] = 0


@inline
def _moments(z: Any, origin: Any, c: int, sums: Any) -> None:
    """Add the sums of (z - origin) and of its square per channel: an origin within the data loses
    no digits."""
    length = max(1, _LANES // c) * c
    k, a, b = (
        np.empty(length, np.float32),
        np.zeros(length, np.float32),
        np.zeros(length, np.float32),
    )
    _tiled(k, origin, length // c)
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
        if since == 32:
            _flush(sums[0], a, c)
            _flush(sums[1], b, c)
            since = 0
    _flush(sums[0], a, c)
    _flush(sums[1], b, c)


def _forward(z_at: int, y_at: int, residual_at: int, pool_at: int, gamma_at: int, beta_at: int, mean_at: int,
             var_at: int, stats_at: int, n: int, hw: int, c: int, eps: float, momentum: float, training: bool,
             silu: bool, parts: int) -> None:  # fmt: skip
    """y from z, and its mean over each map where `pool` is wanted; `residual` is added after the
    norm (both may be 0 for none). In training also the batch's statistics, and the running ones
    moved by `momentum`."""
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
            if second != second:  # max would have swallowed a NaN
                v = second
            stats[i], stats[c + i] = m, 1 / np.sqrt(v + eps)
            mean[i] += momentum * (m - mean[i])
            var[i] += momentum * (v * rows / max(rows - 1, 1) - var[i])
    else:
        for i in range(c):
            stats[i], stats[c + i] = mean[i], 1 / np.sqrt(var[i] + eps)
    for i in range(c):
        stats[2 * c + i] = gamma[i] * stats[c + i]
        stats[3 * c + i] = beta[i] - stats[i] * stats[2 * c + i]
    for p in prange(parts):
        # without a pool the images' borders mean nothing: one long map
        first, last, size = n * p // parts, n * (p + 1) // parts, hw
        if pool_at == 0:
            first, last, size = p, p + 1, 0
        times = max(1, min(_LANES // c, hw if pool_at else _LANES))
        length = times * c
        scale, shift, total = (
            np.empty(length, np.float32),
            np.empty(length, np.float32),
            np.empty(length, np.float32),
        )
        _tiled(scale, stats[2 * c : 3 * c], times)
        _tiled(shift, stats[3 * c :], times)
        for image in range(first, last):
            low, high = image * size * c, (image + 1) * size * c
            if pool_at == 0:
                low, high = rows * p // parts * c, rows * (p + 1) // parts * c
            else:
                total[:] = 0
            for at in range(low, high, length):
                zz, yy = z[at : min(at + length, high)], y[at : min(at + length, high)]
                if pool_at:
                    for i in range(len(zz)):
                        u = zz[i] * scale[i] + shift[i]
                        u = u * _sigmoid(u)
                        yy[i] = u
                        total[i] += u
                elif silu:
                    for i in range(len(zz)):
                        u = zz[i] * scale[i] + shift[i]
                        yy[i] = u * _sigmoid(u)
                elif residual_at:
                    rr = floats(residual_at + 4 * at, length)
                    for i in range(len(zz)):
                        yy[i] = zz[i] * scale[i] + shift[i] + rr[i]
                else:
                    for i in range(len(zz)):
                        yy[i] = zz[i] * scale[i] + shift[i]
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
    """dgate [n, c] = the sum over each map of dout · y."""
    for p in prange(parts):
        for image in range(n * p // parts, n * (p + 1) // parts):
            dgate = floats(dgate_at + 4 * image * c, c)
            dgate[:] = 0
            for row in range(image * hw, (image + 1) * hw):
                y, dout = floats(y_at + 4 * row * c, c), floats(dout_at + 4 * row * c, c)
                for i in range(c):
                    dgate[i] += y[i] * dout[i]


def _backward(dy_at: int, z_at: int, dz_at: int, gate_at: int, dpool_at: int, gamma_at: int, stats_at: int,
              dgamma_at: int, dbeta_at: int, n: int, hw: int, c: int, silu: bool, parts: int) -> None:  # fmt: skip
    """dz, dgamma, dbeta from dy. With a gate (dy is then of y · gate), y's gradient is dy · gate +
    dpool / hw."""
    z, dy, dz, rows = (
        floats(z_at, n * hw * c),
        floats(dy_at, n * hw * c),
        floats(dz_at, n * hw * c),
        n * hw,
    )
    stats, dgamma, dbeta = floats(stats_at, 4 * c), floats(dgamma_at, c), floats(dbeta_at, c)
    sums = np.zeros((parts, 2, c))
    for p in prange(parts):
        first, last = n * p // parts, n * (p + 1) // parts
        times = max(1, min(_LANES // c, hw if gate_at else _LANES))
        length = times * c
        a, b = np.zeros(length, np.float32), np.zeros(length, np.float32)
        mean, scale, shift = (
            np.empty(length, np.float32),
            np.empty(length, np.float32),
            np.empty(length, np.float32),
        )
        gate, extra = np.empty(length, np.float32), np.empty(length, np.float32)
        _tiled(mean, stats[:c], times)
        _tiled(scale, stats[2 * c : 3 * c], times)
        _tiled(shift, stats[3 * c :], times)
        since = 0
        if gate_at == 0:
            first, last = p, p + 1
        for image in range(first, last):
            low, high = image * hw * c, (image + 1) * hw * c
            if gate_at:
                _tiled(gate, floats(gate_at + 4 * image * c, c), times)
                _tiled(extra, floats(dpool_at + 4 * image * c, c), times)
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
                        s = _sigmoid(u)
                        d = (gg[i] * gate[i] + extra[i]) * (s * (_ONE + u * (_ONE - s)))
                        dd[i] = d
                        a[i] += d
                        b[i] += d * (zz[i] - mean[i])
                elif silu:
                    for i in range(len(zz)):
                        u = zz[i] * scale[i] + shift[i]
                        s = _sigmoid(u)
                        d = gg[i] * (s * (_ONE + u * (_ONE - s)))
                        dd[i] = d
                        a[i] += d
                        b[i] += d * (zz[i] - mean[i])
                else:
                    for i in range(len(zz)):
                        a[i] += gg[i]
                        b[i] += gg[i] * (zz[i] - mean[i])
                since += 1
                if since == 64:
                    _flush(sums[p, 0], a, c)
                    _flush(sums[p, 1], b, c)
                    since = 0
        _flush(sums[p, 0], a, c)
        _flush(sums[p, 1], b, c)
    # dz = A · d + B · z + C per channel, d being the gradient after the norm
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
        fa, fb, fc = (
            np.empty(length, np.float32),
            np.empty(length, np.float32),
            np.empty(length, np.float32),
        )
        _tiled(fa, stats[2 * c : 3 * c], times)
        _tiled(fb, factors[0], times)
        _tiled(fc, factors[1], times)
        high = rows * (p + 1) // parts * c
        for at in range(rows * p // parts * c, high, length):
            zz, dd = z[at : min(at + length, high)], dz[at : min(at + length, high)]
            if silu:
                for i in range(len(zz)):
                    dd[i] = fa[i] * dd[i] + fb[i] * zz[i] + fc[i]
            else:
                gg = dy[at : min(at + length, high)]
                for i in range(len(zz)):
                    dd[i] = fa[i] * gg[i] + fb[i] * zz[i] + fc[i]


depthwise = _kernel(_depthwise)
forward = _kernel(_forward)
gate = _kernel(_gate)
gate_backward = _kernel(_gate_backward)
backward = _kernel(_backward)

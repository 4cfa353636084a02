"""A model of latencies: what blocks and networks take that were not measured. No torch.

A block's time is a sum over its layers: a constant, and what grows with multiply-adds, elements
moved and weights, by kind of layer, no coefficient below 0. A network's is its blocks', each a
little longer or shorter in company, and a constant, fitted to whole networks; and what is left of
the error there is taken to hold for the networks nearby. (Blocks that are measured one by one and
added up: nn-Meter, MobiSys 2021; once-for-all, arXiv 1908.09791.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import nnls

from effnet.arch import Network
from effnet.blocks import Block, Op, blocks, ops
from effnet.custom import CustomArch

Array = np.ndarray[Any, np.dtype[np.float64]]

# Channels that a vector unit takes at once: what is left over of them costs as much as all.
_LANES = 16
_KINDS = ("dense", "pointwise", "depthwise", "vector")
_PER_KIND = 4  # coefficients
FEWEST_NETWORKS = 4  # from so many on, what networks take more than their blocks is fitted
# Measured networks whose depth, width and side differ by no more than this fraction or so are
# taken to err alike; one of them is believed by 1 / (1 + _CAUTION).
_NEAR, _CAUTION = 0.1, 0.2


@dataclass(frozen=True)
class LatencyModel:
    """Coefficients of blocks' times and of networks' times, and the log errors that are left at
    networks, by their positions."""

    batch: int
    of_blocks: Array
    of_networks: Array
    positions: Array  # [networks, 3]
    errors: Array  # [networks]
    known: dict[Block, float] = field(default_factory=dict)  # estimates of blocks, made once

    def estimate(self, arch: Network) -> float:
        """Nanoseconds of a forward pass."""
        whole = float(self.network_features(arch) @ self.of_networks)
        if not len(self.errors):
            return whole
        squared = ((self.positions - _position(arch)) ** 2).sum(1)
        weights = np.exp(-squared / (2 * _NEAR**2))
        return whole * float(np.exp(weights @ self.errors / (weights.sum() + _CAUTION)))

    def block_estimate(self, block: Block) -> float:
        """Nanoseconds of one repeat of a block."""
        estimate = self.known.get(block)
        if estimate is None:
            estimate = float(_block_features(block, self.batch) @ self.of_blocks)
            self.known[block] = estimate
        return estimate

    def network_features(self, arch: Network) -> Array:
        """What a network's time is a sum of: of an Arch its blocks' times, their number and 1; of
        a function's network multiply-adds and elements moved, weights, depth and 1."""
        if isinstance(arch, CustomArch):
            counts, batch = arch.counts, self.batch
            return np.array(
                [batch * counts.macs, batch * counts.acts, counts.params, arch.depth, 1.0]
            )
        total = count = 0.0
        for block in blocks(arch):
            total += block.repeats * self.block_estimate(block._replace(repeats=1))
            count += block.repeats
        return np.array([total, count, 1.0])


def fit(
    times: Mapping[Block, float], networks: Mapping[Network, float], batch: int
) -> LatencyModel:
    """The model of measured blocks and networks [ns], at `batch` images a pass."""
    none = np.zeros(0)
    rows = [_block_features(block, batch) for block in times]
    of_blocks = _least_squares(rows, list(times.values())) if rows else none
    blocks_alone = LatencyModel(batch, of_blocks, np.array([1.0, 0.0, 0.0]), none, none)
    features = [blocks_alone.network_features(arch) for arch in networks]
    of_networks = blocks_alone.of_networks
    if any(isinstance(arch, CustomArch) for arch in networks):
        of_networks = np.array([0.0, 0.0, 0.0, 0.0, np.mean(list(networks.values()))])
    if len(features) >= FEWEST_NETWORKS:
        of_networks = _least_squares(features, list(networks.values()))
    errors = []
    for row, time in zip(features, networks.values(), strict=True):
        errors.append(np.log(time / (row @ of_networks)))
    positions = np.array([_position(arch) for arch in networks])
    return LatencyModel(batch, of_blocks, of_networks, positions, np.array(errors))


def _least_squares(rows: list[Array], times: list[float]) -> Array:
    """Coefficients of at least 0 with the smallest squares of relative error."""
    # one scale for all columns, and every row's time 1
    scaled = np.array(rows) / np.array(times)[:, None]
    largest = scaled.max(0)
    largest[largest == 0] = 1.0
    coefficients, _ = nnls(scaled / largest, np.ones(len(times)))
    return np.asarray(coefficients / largest)


def _position(arch: Network) -> Array:
    """Where a network lies among others of its baseline: logarithms of depth, width and side."""
    if isinstance(arch, CustomArch):
        return np.log([arch.depth, arch.width, arch.resolution])
    widths = sum(stage.width for stage in arch.stages)
    return np.log([arch.blocks, widths, arch.resolution])


# ---- what a block's time grows with


def _block_features(block: Block, batch: int) -> Array:
    """Per kind of layer: how many, their multiply-adds, elements in and out, weights; then the same
    of what has no weights: sums, gates and means over maps."""
    row = np.zeros(_PER_KIND * len(_KINDS) + 3)
    for op in ops(block):
        first = _PER_KIND * _KINDS.index(_kind(op))
        area_in, area_out = _areas(op, block)
        lanes_in, lanes_out = _padded(op.c_in), _padded(op.c_out)
        weights = op.c_in // op.groups * op.c_out * op.kernel**2
        padded = lanes_out * op.kernel**2
        if op.groups == 1:
            padded *= lanes_in
        row[first] += 1
        row[first + 1] += batch * padded * area_out
        row[first + 2] += batch * (op.c_in * area_in + op.c_out * area_out)
        row[first + 3] += weights
        if op.kind == "squeeze":  # a mean over the maps before it, and its gate over them after
            row[-2] += batch * op.c_in * block.area_out
        if op.kind == "classifier":
            row[-1] += batch * op.c_in * block.area_in
    if block.shortcut:
        row[-3] += batch * block.c_out * block.area_out
    return row


def _kind(op: Op) -> str:
    if op.side == "one":
        return "vector"
    if op.groups > 1:
        return "depthwise"
    return "pointwise" if op.kernel == 1 else "dense"


def _areas(op: Op, block: Block) -> tuple[int, int]:
    """Elements of a map that a layer reads and writes, per channel."""
    if op.side == "one":
        return 1, 1
    if op.side == "in":
        return block.area_in, block.area_in
    read = block.area_in if op.stride > 1 else block.area_out
    return read, block.area_out


def _padded(channels: int) -> int:
    return -(-channels // _LANES) * _LANES

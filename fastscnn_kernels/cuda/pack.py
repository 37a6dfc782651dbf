"""Weights as the CUDA C++ kernels read them, and what these kernels do not take.

`cuda` runs what is packed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscnn_kernels import checks

TYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
CHUNK = 32  # channels per round of the kernels


class Refused(ValueError):
    """A case that these kernels do not take and other implementations do; nothing was launched."""


@dataclass(frozen=True)
class PackedDsconv:
    """Weights as the kernel reads them: [tap or input][output], zeros up to whole tiles."""

    depthwise: Tensor  # [9][c up to a multiple of 32]
    depthwise_bias: Tensor  # float32
    pointwise: Tensor  # [c ..][o up to a multiple of 64, of 128 with a head or from 65 on]
    pointwise_bias: Tensor
    head: Tensor | None  # [128][k up to a multiple of 32]
    head_bias: Tensor | None
    channels: tuple[int, int, int]  # in, out, classes (0 without a head)


def pack_dsconv(
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    *,
    head: tuple[Tensor, Tensor] | None = None,
) -> PackedDsconv:
    """`head` is weight and bias of a further 1x1 convolution to class scores."""
    op = "dsconv"
    c, o = depthwise_weight.shape[0], pointwise_weight.shape[0]
    like = depthwise_weight
    checks.check_conv(op, "depthwise_", depthwise_weight, depthwise_bias, (c, 1, 3, 3), like)
    checks.check_conv(op, "pointwise_", pointwise_weight, pointwise_bias, (o, c, 1, 1), like)
    _check_channels(op, "depthwise_weight", c)
    _check_channels(op, "pointwise_weight", o)
    k = 0
    if head is not None:
        k = head[0].shape[0]
        checks.check_conv(op, "head ", *head, (k, o, 1, 1), like)
        if o > 128:
            raise Refused(f"{op}: a head on {o} channels, expected at most 128")
    wide = _up(c, CHUNK)
    out = _up(o, 64) if o <= 64 and head is None else _up(o, 128)
    return PackedDsconv(
        _matrix(depthwise_weight.reshape(c, 9), 9, wide),
        _vector(depthwise_bias, wide),
        _matrix(pointwise_weight.reshape(o, c), wide, out),
        _vector(pointwise_bias, out),
        None if head is None else _matrix(head[0].reshape(k, o), 128, _up(k, 32)),
        None if head is None else _vector(head[1], _up(k, 32)),
        (c, o, k),
    )


@dataclass(frozen=True)
class PackedInvertedResidual:
    """Weights as the kernel reads them: [tap or input][output], zeros up to whole tiles."""

    expand: Tensor  # [c up to a multiple of 16][hidden up to a multiple of 32]
    expand_bias: Tensor  # float32
    depthwise: Tensor  # [9][hidden ..]
    depthwise_bias: Tensor
    project: Tensor  # [hidden ..][64, 96 or 128]
    project_bias: Tensor
    channels: tuple[int, int]  # in, out


def pack_inverted_residual(
    expand_weight: Tensor,
    expand_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
) -> PackedInvertedResidual:
    op = "inverted_residual"
    hidden, c = expand_weight.shape[:2]
    o = project_weight.shape[0]
    like = expand_weight
    checks.check_conv(op, "expand_", expand_weight, expand_bias, (hidden, c, 1, 1), like)
    checks.check_conv(op, "depthwise_", depthwise_weight, depthwise_bias, (hidden, 1, 3, 3), like)
    checks.check_conv(op, "project_", project_weight, project_bias, (o, hidden, 1, 1), like)
    _check_channels(op, "expand_weight", c)
    _check_channels(op, "project_weight", o)
    if o > 128:
        raise Refused(
            f"{op}: project_weight has {o} outputs, expected at most 128; {_otherwise(op)}"
        )
    wide = _up(hidden, CHUNK)
    out = 64 if o <= 64 else _up(o, 32)
    return PackedInvertedResidual(
        _matrix(expand_weight.reshape(hidden, c), _up(c, 16), wide),
        _vector(expand_bias, wide),
        _matrix(depthwise_weight.reshape(hidden, 9), 9, wide),
        _vector(depthwise_bias, wide),
        _matrix(project_weight.reshape(o, hidden), wide, out),
        _vector(project_bias, out),
        (c, o),
    )


@dataclass(frozen=True)
class PackedLearningToDownsample:
    """The ten tensors of the kernel in its order: weights [tap or input][output], float32 biases;
    the stem's [output][10 per row of taps: 3 taps x 3 colours and a zero; 2 zeros]."""

    tensors: tuple[Tensor, ...]


#: Channels of the frame and after the stem and each DSConv that the kernel is built for.
DOWNSAMPLE_CHANNELS = (3, 32, 48, 64)


def pack_learning_to_downsample(
    stem_weight: Tensor,
    stem_bias: Tensor,
    dsconv1: Sequence[Tensor],
    dsconv2: Sequence[Tensor],
) -> PackedLearningToDownsample:
    op = "learning_to_downsample"
    check_type(op, "stem_weight", stem_weight)
    channels = (*stem_weight.shape[1::-1], dsconv1[2].shape[0], dsconv2[2].shape[0])
    if channels != DOWNSAMPLE_CHANNELS:
        raise Refused(
            f"{op}: weights for {channels} channels, expected {DOWNSAMPLE_CHANNELS}; "
            f"{_otherwise(op)}"
        )
    _, c1, c2, c3 = channels
    checks.check_conv(op, "stem_", stem_weight, stem_bias, (c1, 3, 3, 3), stem_weight)
    stem = stem_weight.new_zeros(c1, 32)
    rows = stem[:, :30].view(c1, 3, 10)
    rows[:, :, :9] = stem_weight.detach().permute(0, 2, 3, 1).reshape(c1, 3, 9)
    tensors = [stem, _vector(stem_bias, c1)]
    for name, d, c, o in (("dsconv1 ", dsconv1, c1, c2), ("dsconv2 ", dsconv2, c2, c3)):
        checks.check_conv(op, f"{name}depthwise_", d[0], d[1], (c, 1, 3, 3), stem_weight)
        checks.check_conv(op, f"{name}pointwise_", d[2], d[3], (o, c, 1, 1), stem_weight)
        tensors += [_matrix(d[0].reshape(c, 9), 9, c), _vector(d[1], c)]
        tensors += [_matrix(d[2].reshape(o, c), c, o), _vector(d[3], o)]
    return PackedLearningToDownsample(tuple(tensors))


@dataclass(frozen=True)
class PackedPyramidPool:
    """Weights in the order of fragments, inputs up to multiples of 16: x, then each branch."""

    tensors: tuple[Tensor, ...]  # branch weights and biases, join weight and bias
    bins: tuple[int, ...]
    kernel: int  # of the join
    channels: tuple[int, int, int, int]  # in, of a branch, out, out up to a multiple of 64


def pack_pyramid_pool(
    branch_weights: Sequence[Tensor],
    branch_biases: Sequence[Tensor],
    join_weight: Tensor,
    join_bias: Tensor,
    *,
    order: Sequence[int],
) -> PackedPyramidPool:
    op = "pyramid_pool"
    check_type(op, "join_weight", join_weight)
    bins = tuple(sorted(b for b in order if b))
    o, _, kernel, _ = join_weight.shape
    width, c = branch_weights[0].shape[:2]
    inputs = c + width * len(bins)
    for i, (weight, bias) in enumerate(zip(branch_weights, branch_biases, strict=True)):
        checks.check_conv(op, f"branch {i} ", weight, bias, (width, c, 1, 1), join_weight)
    shape = (o, inputs, kernel, kernel)
    checks.check_conv(op, "join_", join_weight, join_bias, shape, join_weight)
    _check_channels(op, "branch weight", c)
    _check_channels(op, "join_weight", o)
    if len(bins) > 4 or sum(bins) > 16:
        raise Refused(f"{op}: bins {bins}, expected at most 4 that add up to 16; {_otherwise(op)}")
    wide, narrow, out = _up(c, 16), _up(width, 16), _up(o, 64)
    branches = [_fragments(w.reshape(width, c), narrow, wide) for w in branch_weights]
    biases = [_vector(b, narrow) for b in branch_biases]
    # The join's inputs in the kernel's order, by what `order` says of theirs.
    parts = dict(zip(order, join_weight.split([width if b else c for b in order], 1), strict=True))
    joined = join_weight.new_zeros(kernel * kernel, o, wide + narrow * len(bins))
    for i, b in enumerate((0, *bins)):
        first = 0 if b == 0 else wide + (i - 1) * narrow
        part = parts[b].detach().permute(2, 3, 0, 1).reshape(kernel * kernel, o, -1)
        joined[:, :, first : first + part.shape[2]] = part
    taps = [_fragments(tap, out, joined.shape[2]) for tap in joined]
    return PackedPyramidPool(
        (torch.cat(branches), torch.cat(biases), torch.cat(taps), _vector(join_bias, out)),
        bins,
        kernel,
        (c, width, o, out),
    )


@dataclass(frozen=True)
class PackedFeatureFusion:
    """1x1 weights in the order of fragments, inputs up to multiples of 64."""

    depthwise: Tensor | None  # [9][low channels up to a multiple of 64]; None with `dense`
    depthwise_bias: Tensor | None
    low: Tensor
    high: Tensor
    bias: Tensor  # of both
    dense: PackedDsconv | None  # what runs on the low map first
    channels: tuple[int, int, int, int]  # high, low, out, out up to a multiple of 128


def pack_feature_fusion(
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
) -> PackedFeatureFusion:
    """The dense 1x1 variant commutes with the sampling: a DSConv of one tap on the low map."""
    op = "feature_fusion"
    check_type(op, "low_weight", low_weight)
    o, cl = low_weight.shape[:2]
    ch = high_weight.shape[1]
    is_dense = depthwise_weight.shape[-1] == 1
    shape = (cl, cl, 1, 1) if is_dense else (cl, 1, 3, 3)
    checks.check_conv(op, "depthwise_", depthwise_weight, depthwise_bias, shape, low_weight)
    checks.check_conv(op, "low_", low_weight, low_bias, (o, cl, 1, 1), low_weight)
    checks.check_conv(op, "high_", high_weight, high_bias, (o, ch, 1, 1), low_weight)
    for name, channels in (("low_weight", cl), ("high_weight", ch), ("output", o)):
        _check_channels(op, name, channels)
    wide, out = _up(cl, 64), _up(o, 128)
    dense = None
    if is_dense:
        tap = depthwise_weight.new_zeros(cl, 1, 3, 3)
        tap[:, :, 1, 1] = 1
        dense = pack_dsconv(tap, tap.new_zeros(cl), depthwise_weight, depthwise_bias)
    return PackedFeatureFusion(
        None if is_dense else _matrix(depthwise_weight.reshape(cl, 9), 9, wide),
        None if is_dense else _vector(depthwise_bias, wide),
        _fragments(low_weight.reshape(o, cl), out, wide),
        _fragments(high_weight.reshape(o, ch), out, _up(ch, 64)),
        _vector(low_bias.float() + high_bias.float(), out),
        dense,
        (ch, cl, o, out),
    )


def _check_channels(op: str, name: str, channels: int) -> None:
    if channels % 8:
        raise Refused(
            f"{op}: {name} has {channels} channels, expected a multiple of 8; {_otherwise(op)}"
        )


def check_type(op: str, name: str, t: Tensor) -> None:
    if t.dtype not in TYPES:
        raise Refused(f"{op}: {name} is {t.dtype}, expected float16 or bfloat16; {_otherwise(op)}")


def _otherwise(op: str) -> str:
    return f"fastscnn_kernels.{op} runs it in Triton or PyTorch"


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _matrix(weight: Tensor, rows: int, columns: int) -> Tensor:
    """`weight` (output x input) as input x output in a larger matrix of zeros."""
    outputs, inputs = weight.shape
    packed = weight.new_zeros(rows, columns)
    packed[:inputs, :outputs] = weight.detach().t()
    return packed


def _vector(bias: Tensor, size: int) -> Tensor:
    packed = bias.new_zeros(size, dtype=torch.float32)
    packed[: bias.shape[0]] = bias.detach()
    return packed


def _fragments(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    """`weight` (output x input), zeros up to `outputs` x `inputs`, in the order in which a warp
    multiplies it: for each 16 inputs and 16 outputs, lane by lane, the words (two inputs each) of
    the lower and upper 8 inputs of the first 8 outputs, then of the last 8."""
    padded = weight.new_zeros(outputs, inputs)
    padded[: weight.shape[0], : weight.shape[1]] = weight.detach()
    # output: 16s, tile, lane / 4; input: 16s, half, lane % 4, element of the word
    parts = padded.view(outputs // 16, 2, 8, inputs // 16, 2, 4, 2)
    return parts.permute(3, 0, 2, 5, 1, 4, 6).reshape(-1)

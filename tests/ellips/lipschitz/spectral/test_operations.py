"""Every rule where its arguments matter: against the norm of what the operation does, or the steepest pair there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ellips.lipschitz import SpectralProduct, UnprovenOperationError
from ellips.lipschitz.capture import captured
from ellips.lipschitz.capture.graph import Node
from ellips.lipschitz.spectral import product, rules

Function = Callable[[Tensor], Tensor]
SHAPE = (2, 4, 6)
aten = torch.ops.aten


def bound_of(function: Function, dense_limit: int = 0) -> float:
    images = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return float(SpectralProduct(dense_limit)(lambda x: function(x).flatten(1), images).constant[0])


def both_bounds_of(function: Function) -> tuple[float, float]:
    """By rules alone, and with what is affine written out."""
    images = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    graph = captured(lambda x: function(x).flatten(1), images)
    by_rules, dense = (product._Bounds(graph, limit, 10).total() for limit in (0, 1024))
    return by_rules, dense


def jacobian_norm(function: Function, image: Tensor) -> float:
    """The largest slope at one image, by one-sided differences: autograd may hide what the function does."""
    size, step = image.numel(), 1e-6
    moved = image + step * torch.eye(size, dtype=torch.float64).view(-1, *SHAPE)
    return float(torch.linalg.matrix_norm((function(moved) - function(image[None])).flatten(1) / step, ord=2))


def _image() -> Tensor:
    return torch.rand(*SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def constants(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


WEIGHT, KERNEL, GROUPED = constants(5, 48), constants(3, 2, 3, 2), constants(4, 1, 2, 3)
MATRICES = torch.stack([torch.zeros(6, 1), torch.ones(6, 1)])
VARIANCE = torch.tensor([0.01, 4.0, 100.0, 1.0, 1.0])
FACTORS = torch.tensor([-3.0, 0.5]).view(2, 1, 1)
SQUARE, ROWS = constants(6, 6), constants(4, 4)
PLACES = torch.tensor([7, 47, 7, 0, 3, 7, 47])
AFFINE: dict[str, Function] = {
    "sum of two": lambda x: x + 3 * x.flip(3),
    "sum that broadcasts": lambda x: torch.add(x, x[:, :1, :1, :1], alpha=2),
    "reversed difference": lambda x: torch.rsub(x, x.flip(3), alpha=5),
    "difference that broadcasts": lambda x: torch.sub(x, x[:, :1, :1, :1], alpha=5),
    "difference from a number that broadcasts": lambda x: 2 * x[:, :1, :1, :1] + torch.rsub(x, 1.0, alpha=3),
    "negative": lambda x: x.neg() + 2 * x[:, :1, :1, :1],
    "a constant difference": lambda x: torch.ones(2, 4, 6).to(x) - x,
    "a matrix from the right": lambda x: x.roll(1, 3) + x @ SQUARE.to(x),
    "a matrix from the right, not square": lambda x: x @ SQUARE[:, :4].to(x),
    "a matrix from the left": lambda x: torch.mm(WEIGHT.to(x), x.flatten(1).T).T,
    "large means": lambda x: x + functional.adaptive_avg_pool2d(x, 1),
    "means of windows that overlap": lambda x: functional.adaptive_avg_pool2d(x, (3, 4)),
    "means of windows smaller than a pixel": lambda x: functional.adaptive_avg_pool2d(x, (8, 18)),
    "resized and resized": lambda x: functional.interpolate(x, (7, 3), mode="bilinear").flip(2),
    "resized with its corners": lambda x: functional.interpolate(x, (9, 5), mode="bicubic", align_corners=True),
    "resized and added": lambda x: x[:, :, :, :4] + functional.interpolate(x, (4, 4), mode="bilinear"),
    "shrunk without aliases": lambda x: functional.interpolate(x, (3, 2), mode="bilinear", antialias=True),
    "joined with a constant": lambda x: torch.cat([x, torch.ones(len(x), 2, 4, 6).to(x)], 1),
    "scaled by a norm of one variance": lambda x: functional.batch_norm(
        x, torch.zeros(2).to(x), VARIANCE[:2].to(x), FACTORS.flatten().to(x), eps=3.0
    ),
    "mean of all": lambda x: x + x.mean((1, 2, 3), keepdim=True),
    "sum of all": lambda x: x + x.sum((1, 2, 3), keepdim=True),
    "average pool added": lambda x: x[:, :, ::2, ::2] - functional.avg_pool2d(x, 2),
    "shuffled channels": lambda x: x + 2 * functional.channel_shuffle(x, 2),
    "factors per channel": lambda x: x * FACTORS.to(x),
    "factors that broadcast": lambda x: x[:, :1] * FACTORS.to(x),
    "division": lambda x: x / (0.2 * FACTORS.to(x)),
    "division that broadcasts": lambda x: x[:, :, :1] / torch.tensor([[4.0], [-0.1]]).to(x),
    "linear along one axis": lambda x: functional.linear(x, WEIGHT[:, :6].to(x)),
    "convolution with strides": lambda x: functional.conv2d(x, KERNEL.to(x), stride=(1, 2), padding=(2, 1)),
    "convolution with dilation": lambda x: functional.conv2d(x, KERNEL.to(x), dilation=(1, 3), padding=(0, 2)),
    "convolution in groups": lambda x: functional.conv2d(x, GROUPED.to(x), groups=2, padding=1),
    "scaled after a layer": lambda x: FACTORS.to(x) * functional.conv2d(x, KERNEL[:2].to(x), padding=1),
    "addmm": lambda x: torch.addmm(torch.ones(5).to(x), x.flatten(1), WEIGHT.T.to(x)),
    "a sum with a wider copy": lambda x: x + 2 * x.double(),
    "a sum with what drops nothing": lambda x: x + 2 * functional.dropout(x, 0.3, training=False),
    "a sum with copies": lambda x: x + 2 * x.clone().contiguous().detach(),
    "a sum with what is padded": lambda x: functional.pad(x, (1, 0)) + 2 * functional.pad(x, (0, 1)),
    "a norm after a convolution": lambda x: functional.batch_norm(
        functional.conv2d(x, KERNEL.to(x), padding=1), torch.zeros(3).to(x), torch.tensor([1e-4, 4.0, 1.0]).to(x)
    ),
    "a norm after a layer": lambda x: functional.batch_norm(
        functional.linear(x.flatten(1), WEIGHT.to(x)), torch.zeros(5).to(x), VARIANCE.to(x)
    ),
    "a norm of one axis after a layer along another": lambda x: functional.batch_norm(
        functional.linear(x, WEIGHT[:2, :6].to(x)), torch.zeros(2).to(x), torch.tensor([1e-4, 100.0]).to(x)
    ),
    "mean over an axis": lambda x: x.mean((2, 3)),
    "sum over an axis": lambda x: x.sum((1, 2)),
    "average pool": lambda x: functional.avg_pool2d(x, (2, 3)),
    "average pool with strides": lambda x: functional.avg_pool2d(x, (2, 3), stride=(1, 2)),
    "padded average pool": lambda x: functional.avg_pool2d(x, (2, 3), stride=1, padding=(1, 1)),
    "windows cut beyond their padding": lambda x: functional.avg_pool2d(x, (4, 3), 3, (1, 0), ceil_mode=True),
    "windows cut at the end": lambda x: functional.avg_pool2d(x, (2, 3), 3, ceil_mode=True),
    "windows cut by what pads them": lambda x: functional.avg_pool2d(x, (2, 3), 3, (1, 0), ceil_mode=True),
    "cut windows": lambda x: functional.avg_pool2d(x, (3, 4), stride=2, ceil_mode=True),
    "cut windows that count what they hold": lambda x: x[:, :, :2, :3] + functional.avg_pool2d(
        x, (3, 4), 2, (1, 2), ceil_mode=True, count_include_pad=False
    )[:, :, :2, :3],
    "windows of one number at a corner": lambda x: functional.avg_pool2d(x, 4, 4, 2, count_include_pad=False),
    "enlarged by a factor": lambda x: functional.interpolate(x, scale_factor=(3, 2), mode="bicubic"),
    "enlarged by a factor with its corners": lambda x: functional.interpolate(
        x, scale_factor=2, mode="bilinear", align_corners=True
    ),
    "shrunk by a factor": lambda x: functional.interpolate(x, scale_factor=0.5, mode="nearest"),
    "the nearest by a factor": lambda x: functional.interpolate(x, scale_factor=(1, 2), mode="nearest-exact"),
    "padded by its mirror image": lambda x: functional.pad(x, (3, 4, 1, 3), mode="reflect"),
    "padded by its border": lambda x: functional.pad(x, (3, 0, 1, 2), mode="replicate"),
    "padded by its opposite border": lambda x: functional.pad(x, (3, 2, 1, 4), mode="circular"),
    "padded and cut off": lambda x: functional.pad(x, (-2, 3, 0, -1), mode="replicate"),
    "padded and added": lambda x: functional.pad(x, (1, 2, 1, 1), mode="reflect") - functional.pad(x, (3, 0, 0, 2)),
    "padded along one axis": lambda x: functional.pad(x[:, 0], (5, 0), mode="reflect"),
    "joined": lambda x: torch.cat([x, 2 * x, torch.full((len(x), 1, 4, 6), 3.0).to(x)], 1),
    "stacked": lambda x: torch.stack([x, 3 * x], 2),
    "padded": lambda x: functional.pad(x, (2, -1, 0, 3), value=4.0),
    "selected": lambda x: x[:, 1, 1:3, ::2],
    "rearranged by places": lambda x: x - 2 * x.index_select(3, torch.tensor([5, 0, 2, 1, 4, 3])),
    "some places twice and some three times": lambda x: x.flatten(1).index_select(1, PLACES),
    "some places left out, and added": lambda x: x[..., :2] + x.index_select(3, torch.tensor([1, 1])),
    "shuffled": lambda x: functional.pixel_unshuffle(x, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", AFFINE)
def test_affine_operations_are_bounded_by_their_norms_and_written_out_have_just_these(name: str) -> None:
    """Written out, each operation is applied by its rule, too, and not only bounded."""
    function = AFFINE[name]
    truth = jacobian_norm(function, _image())
    by_rules, dense = both_bounds_of(function)
    assert truth * (1 - 1e-7) <= by_rules
    assert truth * (1 - 1e-7) <= dense <= truth * 1.0001


BENT: dict[str, tuple[Function, float]] = {
    "prelu of negative slopes": (lambda x: functional.prelu(x - 0.5, torch.tensor([-7.0, 2.0]).to(x)), 7.0),
    "leaky": (lambda x: functional.leaky_relu(x - 0.5, -4.0), 4.0),
    "elu of a negative alpha": (lambda x: functional.elu(x - 0.5, -3.0), 3.0),
    "elu with all its scales": (lambda x: aten.elu.default(x - 0.5, -3.0, -2.0, 4.0), 24.0),
    "elu steep above": (lambda x: aten.elu.default(x - 0.5, 0.1, -5.0, 0.5), 5.0),
    "celu of a small alpha": (lambda x: functional.celu(x - 0.5, 0.25), 1.0),
    "leaky of a small slope": (lambda x: functional.leaky_relu(x, 0.01), 1.0),
    "prelu of small slopes": (lambda x: functional.prelu(x, torch.tensor([0.25]).to(x)), 1.0),
    "between two bounds": (lambda x: x.clamp(0.0, 1.0), 1.0),
    "below a bound": (lambda x: x.clamp(max=1.0), 1.0),
    "above a bound": (lambda x: x.clamp(min=0.0), 1.0),
    "maximum that broadcasts": (lambda x: torch.maximum(x[:, :1, :1, :1], torch.zeros(2, 4, 6).to(x)), 48**0.5),
    "minimum of two": (lambda x: torch.minimum(3 * x, 4 + 0 * x), 3.0),
}


@pytest.mark.parametrize("name", BENT)
def test_the_steepest_piece_of_what_is_bent_counts(name: str) -> None:
    function, slope = BENT[name]
    image = torch.full(SHAPE, 0.5 - 1e-3 if slope != 5.0 else 0.6, dtype=torch.float64)
    near = jacobian_norm(function, image if "m" not in name[:1] else torch.full(SHAPE, 0.6, dtype=torch.float64))
    assert near == pytest.approx(slope, rel=2e-2)
    assert slope <= bound_of(function) * (1 + 1e-9)


POOLS = [
    (3, 1, 1, False),
    (2, 2, 1, False),
    (2, 1, 2, False),
    ((3, 2), (2, 1), 1, True),
    ((1, 3), (1, 2), (1, 2), False),
]


@pytest.mark.parametrize(("kernel", "stride", "dilation", "ceil"), POOLS)
def test_a_pixel_that_is_the_largest_of_many_windows_counts_as_often(
    kernel: object, stride: object, dilation: object, ceil: bool
) -> None:
    """One bright pixel moves every window that holds it: the slope is the root of their number."""

    def pool(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, kernel, stride, dilation=dilation, ceil_mode=ceil)  # type: ignore[arg-type]

    bright = torch.eye(48, dtype=torch.float64).view(-1, *SHAPE)
    steepest = float((pool(2 * bright) - pool(bright)).flatten(1).norm(dim=1).max())
    assert steepest <= bound_of(pool)


def test_windows_with_gaps_overlap_as_often_as_those_without() -> None:
    """Where the image is wide enough: three windows of every other pixel of five, one next to the other."""
    bright = torch.eye(48, dtype=torch.float64).view(-1, *SHAPE)

    def pool(x: Tensor) -> Tensor:
        return functional.max_pool2d(x.reshape(len(x), 1, 2, 24), (1, 3), 1, dilation=(1, 2))

    steepest = float((pool(2 * bright) - pool(bright)).flatten(1).norm(dim=1).max())
    assert steepest == pytest.approx(3**0.5)
    assert steepest <= bound_of(pool)


def _pair(first: Function, second: Function, dim: int = 1) -> Function:
    return lambda x: torch.cat([first(x), second(x)], dim)


EXTREMES: dict[str, Function] = {
    "the pair itself": _pair(lambda x: x.amin(1, True), lambda x: x.amax(1, True)),
    "of one axis and another": _pair(lambda x: x.amin(2, True), lambda x: x.amax(3, True).repeat(1, 1, 1, 6), 2),
    "of an axis of four": _pair(lambda x: x.amin(2, True), lambda x: x.amax(2, True), 2),
    "joined elsewhere": _pair(lambda x: x.amin(1, True), lambda x: x.amax(1, True), 3),
    "the larger twice": _pair(lambda x: x.amax(1, True), lambda x: x.amax(1, True)),
    "of two numbers": _pair(lambda x: x.amin(1, True), lambda x: (5 * x).amax(1, True)),
    "of two axes": _pair(lambda x: x.amin((1, 2), True), lambda x: x.amax((1, 2), True)),
    "without their axis": _pair(lambda x: x.amin(1), lambda x: x.amax(1)),
    "three": lambda x: torch.cat([x.amin(1, True), x.amax(1, True), x.amax(1, True)], 1),
    "by position": lambda x: torch.cat([x.min(1, True)[0], x.max(1, True)[0]], 1),
    "of two by position": lambda x: torch.cat([x.min(1, True)[0], (5 * x).max(1, True)[0]], 1),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_the_smaller_and_the_larger_of_a_pair_are_known_and_nothing_else_is_taken_for_them(name: str) -> None:
    function = EXTREMES[name]
    images = 0.1 * torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images[:, :, 1] += torch.linspace(0, 1, 6)  # one line, then one column, is the largest of all
    bound = bound_of(function)
    assert max(jacobian_norm(function, image) for image in images) <= bound * (1 + 1e-6)
    assert (bound == pytest.approx(1.0)) == (name in ("the pair itself", "by position"))


def split(x: Tensor, *sizes: int, dim: int = 3) -> tuple[Tensor, ...]:
    return x.split(list(sizes), dim)


def shifted(x: Tensor) -> Tensor:
    still, right, down = split(x, 2, 3, 1)
    return torch.cat([still, right.roll(1, 1), down.roll(-1, 2)], 3)


def halved(x: Tensor) -> Tensor:
    first, rest = split(x - 0.5, 4, 2)
    return torch.cat([first.abs(), rest], 3)


def steps(x: Tensor) -> Tensor:
    """The column that the first step makes larger is the one that the last does: 10 each in another order."""
    first, second = torch.tensor([10.0, 1.0, 1.0, 1.0]).to(x), torch.tensor([1.0, 10.0, 1.0, 1.0]).to(x)
    return second * (first * x).roll(1, 3)


APART: dict[str, tuple[Function, float]] = {
    "shifted": (shifted, 1.0),
    "moved elsewhere": (lambda x: torch.cat([p.flatten(1) for p in split(x, 4, 2)], 1), 1.0),
    "absolute in part": (halved, 1.0),
    "both": (lambda x: halved(shifted(x)), 1.0),
    "one after the other": (lambda x: torch.cat([p.abs().roll(1, 2) for p in x.split(2, 3)], 3), 1.0),
    "in another order": (lambda x: torch.cat(split(x, 2, 3, 1)[::-1], 3), 1.0),
    "some left out": (lambda x: torch.cat(split(x, 2, 3, 1)[::2], 3), 1.0),
    "one steeper": (lambda x: torch.cat([split(x, 2, 4)[0], 3 * split(x, 2, 4)[1]], 3), 3.0),
    "two steps": (lambda x: torch.cat([split(x, 2, 4)[0], -2 * (3 * split(x, 2, 4)[1]).abs()], 3), 6.0),
    "one piece alone": (lambda x: torch.cat([2 * split(x, 2, 4)[1]], 3), 2.0),
    "steps in their order": (lambda x: torch.cat([split(x, 2, 4)[0], steps(split(x, 2, 4)[1])], 3), 100.0),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_pieces_of_one_tensor_count_as_the_steepest_of_them(name: str) -> None:
    function, slope = APART[name]
    truth = jacobian_norm(function, _image())
    for bound in both_bounds_of(function):
        assert truth * (1 - 1e-6) <= bound <= slope * (1 + 1e-6)


OVERLAPPING: dict[str, Function] = {
    "one piece twice": lambda x: torch.cat([split(x, 2, 4)[1].abs(), split(x, 2, 4)[1]], 3),
    "one piece twice, of one call": lambda x: (lambda p: torch.cat([p[0], p[1], p[0]], 3))(split(x, 2, 4)),
    "of two ways to split": lambda x: torch.cat([split(x, 4, 2)[0], split(x, 2, 4)[1]], 3),
    "of two ways to split, by size": lambda x: torch.cat([x.split(4, 3)[0], x.split(2, 3)[1]], 3),
    "along two axes": lambda x: torch.cat([split(x, 2, 4)[0].flatten(1), x.split([1, 3], 2)[1].flatten(1)], 1),
    "of the tensor and of its mirror image": lambda x: torch.cat([split(x, 3, 3)[0], split(x.flip(3), 3, 3)[1]], 3),
    "of the tensor and of what is moved": lambda x: torch.cat([split(x, 3, 3)[0], split(x.roll(3, 3), 3, 3)[1]], 3),
    "absolute on slices that overlap": lambda x: torch.cat([x[..., :4].abs(), x[..., 2:]], 3),
    "slices of steps that overlap": lambda x: torch.cat([x[..., ::2], x[..., ::3]], 3),
    "with the whole": lambda x: torch.cat([x, split(x, 2, 4)[1]], 3),
    "a piece and its sum with another": lambda x: (lambda p: torch.cat([p[0], p[1], p[0] + p[1]], 3))(split(x, 3, 3)),
    "a piece that is copied": lambda x: torch.cat([p.repeat(1, 1, 2, 1) for p in split(x, 2, 4)], 3),
    "pieces that are joined twice": lambda x: torch.cat([shifted(x), halved(x)], 3),
    "a piece of a piece": lambda x: torch.cat([split(split(x, 4, 2)[0], 2, 2)[1], split(x, 2, 4)[1]], 3),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERLAPPING)
def test_pieces_that_overlap_count_as_often_as_they_come(name: str) -> None:
    """The steepest point lies above 1 for each of them: a rule that took them for pieces apart would be unsound."""
    function = OVERLAPPING[name]
    truth = jacobian_norm(function, _image())
    assert truth > 1.4
    assert truth * (1 - 1e-6) <= min(both_bounds_of(function))


LENGTHS: dict[str, Function] = {
    "over an axis": lambda x: torch.linalg.vector_norm(x, dim=2),
    "over space": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "over all, axes kept": lambda x: torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True),
    "over flattened space": lambda x: torch.linalg.vector_norm(x.flatten(2), dim=2),
    "sorted": lambda x: x.flatten(1).sort(1)[0],
    "the largest": lambda x: x.amax(1),
    "of what is moved": lambda x: torch.linalg.vector_norm(x.permute(0, 2, 3, 1).flatten(1, 2), dim=1),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_and_orders_of_groups_have_slope_one_at_zero_too(name: str) -> None:
    function = LENGTHS[name]
    bound = bound_of(function)
    assert 0.9 < jacobian_norm(function, _image()) <= bound * (1 + 1e-6) <= 1 + 2e-6
    tiny = 1e-9 * torch.randn(50, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for other in (torch.zeros_like(tiny), tiny.flip(0), -tiny):
        steps = (function(tiny) - function(other)).flatten(1).norm(dim=1)
        assert (steps <= bound * (tiny - other).flatten(1).norm(dim=1) * (1 + 1e-6)).all()


LENGTHS_REFUSED: dict[str, Function] = {
    "a root, steep at zero": lambda x: x.square().sum((2, 3)).sqrt(),
    "a root above an epsilon": lambda x: (x.square().sum((2, 3)) + 1e-6).sqrt(),
    "a power": lambda x: x.square().sum((2, 3)).pow(0.5),
    "the sum of magnitudes": lambda x: torch.linalg.vector_norm(x, ord=1, dim=(2, 3)),
    "the largest magnitude": lambda x: torch.linalg.vector_norm(x, ord=torch.inf, dim=(2, 3)),
    "of order three": lambda x: torch.linalg.vector_norm(x, ord=3, dim=(2, 3)),
    "how many are not zero": lambda x: torch.linalg.vector_norm(x, ord=0, dim=(2, 3)),
    "in another type": lambda x: torch.linalg.vector_norm(x, dim=(2, 3), dtype=torch.float64),
    "of a direction": lambda x: functional.normalize(x.flatten(1), dim=1, eps=0.0),
}


@pytest.mark.parametrize("name", LENGTHS_REFUSED)
def test_what_only_looks_like_a_length_is_refused(name: str) -> None:
    with pytest.raises(UnprovenOperationError, match="Expected"):
        bound_of(LENGTHS_REFUSED[name])


@pytest.mark.parametrize(
    "roll",
    [lambda x: x.roll((1, 7), (1, 3)), lambda x: x.roll(-1, 2) + x.roll(1, 2)],
    ids=["of two axes, farther than they are long", "to both sides at once"],
)
def test_numbers_that_are_rolled_come_once_each(roll: Function) -> None:
    truth = jacobian_norm(roll, _image())
    assert truth * (1 - 1e-7) <= bound_of(roll, 1024) <= truth * (1 + 1e-6)


@pytest.mark.parametrize(
    "roll",
    [lambda x: x.roll(5), lambda x: x.roll(1, 0), lambda x: x.index_select(0, torch.arange(len(x) - 1, -1, -1))],
    ids=["all in a row", "the images", "the images by places"],
)
def test_numbers_that_are_rolled_to_another_image_are_refused(roll: Function) -> None:
    with pytest.raises(UnprovenOperationError, match="Expected"):
        SpectralProduct()(lambda x: roll(x).flatten(1), torch.rand(2, *SHAPE))


def on_ball(part: Function, divisor: Function) -> Function:
    def function(x: Tensor) -> Tensor:
        v = x.flatten(1)
        return part(v) / divisor(v)

    return function


QUOTIENTS: dict[str, Function] = {
    "by half its norm": on_ball(lambda v: v, lambda v: (0.5 * v).norm(dim=1, keepdim=True).clamp(min=0.1)),
    "by another's norm": on_ball(lambda v: 3 * v, lambda v: v.norm(dim=1, keepdim=True).clamp(min=0.1)),
    "by the norm alone": on_ball(lambda v: v, lambda v: v.norm(dim=1, keepdim=True)),
    "by a norm above a negative number": on_ball(lambda v: v, lambda v: v.norm(dim=1, keepdim=True).clamp(min=-1.0)),
    "by a norm between two numbers": on_ball(lambda v: v, lambda v: v.norm(dim=1, keepdim=True).clamp(0.1, 0.2)),
    "by a norm below a number": on_ball(lambda v: v, lambda v: v.norm(dim=1, keepdim=True).clamp(max=0.2)),
    "by a norm above zero": on_ball(lambda v: v, lambda v: v.norm(dim=1, keepdim=True).clamp(min=0.0)),
    "a constant by a norm": on_ball(lambda v: torch.ones_like(v), lambda v: v.norm(dim=1, keepdim=True).clamp(min=0.1)),
    "by its sum": on_ball(lambda v: v, lambda v: v.sum(1, keepdim=True).clamp(min=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", QUOTIENTS)
def test_no_other_quotient_is_taken_for_the_projection_on_a_ball(name: str) -> None:
    with pytest.raises(UnprovenOperationError, match="Expected"):
        bound_of(QUOTIENTS[name])


@pytest.mark.parametrize("least", [0.2, 1.0, 5.0])
def test_the_projection_on_a_ball_is_divided_by_its_radius(least: float) -> None:
    project = on_ball(lambda v: v, lambda v: v.norm(dim=1, keepdim=True).clamp(min=least))
    inside = _image()
    inside *= 0.5 * least / inside.norm()
    assert jacobian_norm(project, inside) <= bound_of(project) * (1 + 1e-6) <= 1.001 / least


def test_places_that_rounding_decides_are_refused() -> None:
    """0.7 times 10 is 7 in float32 and less in float64: in the proof the two places would not be the same one."""
    weight = torch.nn.Parameter(torch.tensor([0.7]))
    wide, narrow = ((kind * 10).long() for kind in (weight.double(), weight))
    assert (int(wide), int(narrow)) == (6, 7)
    with pytest.raises(UnprovenOperationError, match="how their computation is rounded"):
        bound_of(lambda x: x.flatten(1).index_select(1, torch.cat([(weight * 10).long(), torch.tensor([7])])))


def test_places_that_every_call_moves_are_refused() -> None:
    places = torch.arange(48)

    def function(x: Tensor) -> Tensor:
        places.copy_(places.roll(1) // 2)
        return x.flatten(1).index_select(1, places)

    with pytest.raises(UnprovenOperationError, match="Expected a function"):
        bound_of(function)


def test_places_that_change_change_the_bound() -> None:
    places = torch.arange(48)
    prover, images = SpectralProduct(), torch.rand(1, *SHAPE)
    for repeated in (1, 2, 9):
        places[:repeated] = 20
        # Besides those that are written over it, the number that was there before comes once.
        assert float(prover(lambda x: x.flatten(1).index_select(1, places), images).constant[0]) == pytest.approx(
            (repeated + 1) ** 0.5
        )


REFUSED: dict[str, Function] = {
    "places of the image": lambda x: x.index_select(3, (5 * x[0, 0, 0]).long()),
    "places of the image in a constant": lambda x: torch.eye(6).to(x).index_select(1, (5 * x[0, 0, 0]).long()),
    "places in their order in the image": lambda x: x.index_select(3, x[0, 0, 0].argsort()),
    "slopes that broadcast": lambda x: aten._prelu_kernel.default(x[:, :1], torch.full((1, 2, 1, 1), 3.0).to(x)),
    "weights of the image": lambda x: functional.linear(x.flatten(1), x.flatten(1)),
    "a bias of the image": lambda x: torch.addmm(x.flatten(1), torch.ones(1, 48).to(x), torch.ones(48, 48).to(x)),
    "a product of the image with itself": lambda x: torch.addmm(torch.ones(4).to(x), x[0, 0], x[0, 0].T),
    "matrices of three axes": lambda x: x @ MATRICES.to(x),
    "statistics of the image": lambda x: functional.batch_norm(x, x.mean((0, 2, 3)), torch.ones(2).to(x)),
    "a variance of zero": lambda x: functional.batch_norm(x, torch.zeros(2), torch.zeros(2), eps=0.0),
    "sorted positions": lambda x: x.sort(1)[1].to(x),
    "another length": lambda x: torch.linalg.vector_norm(x, ord=1, dim=1),
    "another older length": lambda x: torch.norm(x, p=0.5, dim=1),
    "an older length of order one": lambda x: aten.norm.ScalarOpt_dim(x, 1.0, [1]),
    "growth": lambda x: aten.elu.default(x, 1.0, 1.0, -1.0),
    "growth, of a negative alpha": lambda x: functional.celu(x - 0.5, -0.1),
    "crossed bounds": lambda x: x.clamp(0.9, 0.1),
    "slopes of the image": lambda x: functional.prelu(x, x[0, :, 0, 0]),
    "slopes of the image on a constant": lambda x: functional.prelu(torch.ones(1, 2, 4).to(x), x[0, :, 0, 0]),
    "kernels of the image": lambda x: functional.conv2d(torch.ones(1, 2, 4, 6).to(x), x),
    "kernels of the image on the image": lambda x: functional.conv2d(x, x),
    "a bias of the image behind a kernel": lambda x: functional.conv2d(x, KERNEL.to(x), x[0, 0, 0, :3]),
    "a bias of the image behind a matrix": lambda x: functional.linear(x, WEIGHT[:, :6].to(x), x[0, 0, 0, :5]),
    "a convolution along one axis": lambda x: functional.conv1d(x[:, :, 0], torch.ones(1, 2, 2).to(x)),
    "a matrix from the left of three axes": lambda x: torch.matmul(ROWS.to(x), x[:, 0]),
    "a matrix of the image": lambda x: torch.ones(3, 6).to(x) @ x[0, 0].T @ x[0, 0],
    "a transposed convolution": lambda x: functional.conv_transpose2d(x, KERNEL.transpose(0, 1).to(x)),
    "a transposed convolution, by its general name": lambda x: aten.convolution.default(
        x, KERNEL.transpose(0, 1).to(x), None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1
    ),
    "a convolution with room in its result": lambda x: aten.convolution.default(
        x, KERNEL.transpose(0, 1).to(x), None, [2, 2], [0, 0], [1, 1], True, [1, 0], 1
    ),
    "statistics of the batch": lambda x: functional.batch_norm(x, None, None, training=True),
    "statistics of the batch, and others": lambda x: functional.batch_norm(
        x, torch.zeros(2).to(x), torch.ones(2).to(x), training=True
    ),
    "factors of the image": lambda x: functional.batch_norm(
        x, torch.zeros(2).to(x), torch.ones(2).to(x), x[0, :, 0, 0]
    ),
    "one variance below zero": lambda x: functional.batch_norm(
        x, torch.zeros(2).to(x), torch.tensor([1.0, -1.0]).to(x), eps=0.0
    ),
    "one divisor of zero": lambda x: x / torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]).to(x),
    "resized by a factor": lambda x: functional.interpolate(x, scale_factor=1.3, mode="bilinear"),
    "resized by two factors": lambda x: functional.interpolate(x, scale_factor=(2.6, 1.4), mode="nearest"),
    "means with a divisor": lambda x: functional.avg_pool2d(x, 2, divisor_override=1),
    "a matrix with a factor": lambda x: torch.addmm(torch.ones(5).to(x), x.flatten(1), WEIGHT.T.to(x), alpha=3),
    "dropped": lambda x: functional.dropout(x, 0.5, training=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_rule_does_not_cover_is_refused(name: str) -> None:
    with pytest.raises((UnprovenOperationError, ValueError)):
        bound_of(REFUSED[name])


ADDENDS = [math.nan, math.inf, torch.tensor([0.0, math.nan]), torch.tensor([-math.inf, 0.0]), 1j, torch.ones(2) * 1j]


@pytest.mark.parametrize("addend", ADDENDS, ids=str)
def test_constants_are_finite_whatever_becomes_of_them(addend: float | complex | Tensor) -> None:
    node = SimpleNamespace(op="add")
    with pytest.raises(UnprovenOperationError, match="not a finite number"):
        rules._require_finite(node, addend)  # type: ignore[arg-type]
    for finite in (1.0, 3, None, torch.ones(2), torch.arange(2)):
        rules._require_finite(node, finite)  # type: ignore[arg-type]
    with pytest.raises(UnprovenOperationError, match="not a finite number"):
        bound_of(lambda x: x + x / torch.tensor(math.inf).to(x))


def test_dropout_is_the_identity_in_eval_mode_and_refused_in_training() -> None:
    """Of the operation by itself: this release of torch captures it as nothing, or as a draw of random numbers."""
    rule, _ = rules.RULES[aten.dropout.default]
    image: Any = SimpleNamespace(op=None)
    effect = rule(SimpleNamespace(op="dropout"), image, train=False, p=0.5)
    assert effect.parts == [image]
    assert effect.gains() == [1.0]
    assert effect.apply is not None
    assert torch.equal(effect.apply([_image()], lambda x: x), _image())
    with pytest.raises(UnprovenOperationError, match="training mode"):
        rule(SimpleNamespace(op="dropout"), image, train=True, p=0.5)


def test_batch_norm_takes_its_own_statistics_or_is_refused() -> None:
    """Of the operation by itself, which this release of torch captures under another name."""
    rule, _ = rules.RULES[aten.batch_norm.default]
    node: Any = SimpleNamespace(op="batch_norm", output=None, shape=(1, 2, 4, 6))
    part = Node.__new__(Node)
    rest: dict[str, Any] = {"weight": None, "bias": None, "momentum": 0.1, "eps": 0.0, "cudnn_enabled": True}
    mean, var = torch.zeros(2), VARIANCE[:2]
    effect = rule(node, part, running_mean=mean, running_var=var, training=False, **rest)
    assert effect.gains() == [float(var.double().rsqrt()[0])]
    assert torch.equal(effect.scale, var.double().rsqrt())
    for training, given in ((True, (mean, var)), (False, (None, var)), (False, (mean, None))):
        with pytest.raises(UnprovenOperationError, match="statistics of the batch"):
            rule(node, part, running_mean=given[0], running_var=given[1], training=training, **rest)


@pytest.mark.parametrize("large", [0, 1], ids=["first", "last"])
@pytest.mark.parametrize("width", [6, 5], ids=["forwards", "backwards"])
def test_where_products_cancel_the_bound_is_of_what_float64_has_lost(large: int, width: int) -> None:
    """(x a) b - x c with c = ab as rounded: written out in float64 it is 0, and in truth it is not."""
    generator = torch.Generator().manual_seed(0)
    a, b = (1 + torch.rand(*SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    a[1 - large] *= 2.0**-60
    rows = zip(*(x[..., :width].flatten().tolist() for x in (a, b, a * b)), strict=True)
    lost = max(abs(Fraction(p) * Fraction(q) - Fraction(r)) for p, q, r in rows)
    assert lost > 2.0**-54
    bound = bound_of(lambda x: (x.double() * a * b - x.double() * (a * b))[..., :width], 1024)
    assert float(lost) <= bound < 1e-12


def test_where_products_of_few_numbers_cancel_the_bound_is_of_what_float64_has_lost() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (1 + torch.rand(2, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    rows = zip(*(x.flatten().tolist() for x in (a, b, a * b)), strict=True)
    lost = max(abs(Fraction(p) * Fraction(q) - Fraction(r)) for p, q, r in rows)
    assert lost > 2.0**-54

    def function(x: Tensor) -> Tensor:
        few = x[..., :1, :1].double()
        return few * a * b - few * (a * b)

    assert float(lost) <= bound_of(function, 1024) < 1e-12


@pytest.mark.parametrize("width", [6, 5], ids=["forwards", "backwards"])
@pytest.mark.parametrize("parted", [False, True], ids=["whole", "in pieces"])
def test_what_vanishes_in_a_matrix_and_is_multiplied_afterwards_counts(width: int, parted: bool) -> None:
    """Numbers of 1e200 survive both small factors, those of a matrix that is written out for them do not."""

    def shrunk(x: Tensor) -> Tensor:
        return x * 1e-200 * 1e-200

    def function(x: Tensor) -> Tensor:
        x = x.double()[..., :width]
        large = torch.relu(x * 1e200)
        if parted:
            left, right = large.split(1, 1)
            return x + torch.cat([shrunk(left), right * 0], 1) * 1e200
        return x + shrunk(large) * 1e200

    one = torch.zeros(1, 2, 8, 6)
    one[0, 0, 0, 0] = 1
    assert float(function(one).norm()) == pytest.approx(2)
    assert bound_of(function, 1024) >= 2


@pytest.mark.parametrize("slip", [1e-6, -1e-6])
def test_a_matrix_that_autograd_gets_wrong_is_refused(slip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One output in eight, by one part in a million."""
    truly = product._Bounds._transposed

    def transposed(*given: Any) -> Function:
        pull_back = truly(*given)
        return lambda vector: pull_back(vector) * (1 + slip * float(vector.flatten()[3] == 1))

    monkeypatch.setattr(product._Bounds, "_transposed", transposed)
    for factor in (1.0, 1e12, 1e-12):
        with pytest.raises(UnprovenOperationError, match="autograd"):
            bound_of(lambda x, factor=factor: x.double()[:, :1, :2, :4] * factor, 1024)


@pytest.mark.parametrize("order", [[1, 0, *range(2, 48)], [5, *range(1, 5), 0, *range(6, 48)], [*range(48)][::-1]])
def test_a_matrix_whose_columns_autograd_exchanges_is_refused(
    order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    truly = product._Bounds._transposed

    def transposed(*given: Any) -> Function:
        pull_back = truly(*given)
        return lambda vector: pull_back(vector).flatten()[order]

    monkeypatch.setattr(product._Bounds, "_transposed", transposed)
    with pytest.raises(UnprovenOperationError, match="autograd"):
        bound_of(lambda x: (x.double() + 2 * x.double().roll(1, 3))[:, :1], 1024)

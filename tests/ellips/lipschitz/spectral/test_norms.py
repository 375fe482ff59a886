from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

from ellips.lipschitz.capture.graph import UnprovenOperationError
from ellips.lipschitz.spectral.norms import (
    convolution_norm,
    finite,
    gram_norm,
    matrix_norm,
    resize_matrices,
    scaled_rows,
    stack_norm,
    times,
)

# out, in, kernel, stride, dilation, groups, padding, height, width
CONVOLUTIONS = [
    (4, 3, 3, 1, 1, 1, 1, 7, 6),
    (4, 3, 3, 2, 1, 1, 1, 8, 7),
    (4, 6, 3, 2, 2, 2, 2, 9, 9),
    (5, 2, 5, 3, 1, 1, 0, 11, 10),
    (6, 6, 3, 1, 1, 6, 1, 5, 5),
    (4, 3, 1, 2, 1, 1, 0, 8, 8),
    (3, 3, 2, 2, 1, 1, 0, 6, 6),
    (2, 2, 3, 1, 1, 1, 5, 4, 4),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_a_convolutions_bound_is_at_least_its_norm_and_not_far_above(case: tuple[int, ...]) -> None:
    out, inner, kernel, stride, dilation, groups, padding, height, width = case
    weight = torch.randn(
        out, inner // groups, kernel, kernel, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    basis = torch.eye(inner * height * width, dtype=torch.float64).view(-1, inner, height, width)
    matrix = functional.conv2d(basis, weight, None, stride, padding, dilation, groups).flatten(1)
    truth = float(torch.linalg.matrix_norm(matrix, ord=2))
    bound = convolution_norm(
        weight, (height, width), stride=(stride, stride), dilation=(dilation, dilation), groups=groups
    )
    assert truth <= bound <= 1.25 * truth


@pytest.mark.parametrize("axis", [0, 1])
def test_no_frequency_is_left_out(axis: int) -> None:
    """Differences of neighbours are largest at the highest frequency there is, of even and odd sizes."""
    for size in range(1, 10):
        weight = torch.tensor([1.0, -1.0], dtype=torch.float64).view(1, 1, *((2, 1) if axis == 0 else (1, 2)))
        shape = (size, 1) if axis == 0 else (1, size)
        basis = torch.eye(size, dtype=torch.float64).view(-1, 1, *shape)
        matrix = functional.conv2d(basis, weight, padding=(1 - axis, axis)).flatten(1)
        assert convolution_norm(weight, shape) >= float(torch.linalg.matrix_norm(matrix, ord=2))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2, 3, 5])
def test_taps_that_lie_far_apart_do_not_meet_behind_the_edge(dilation: int, axis: int) -> None:
    """They would cancel on a torus that is too small."""
    taps = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    for size in range(1, 8):
        shape, spread, padding = [1, 1], [1, 1], [0, 0]
        shape[axis], spread[axis], padding[axis] = size, dilation, 2 * dilation
        weight = taps.view(1, 1, *((3, 1) if axis == 0 else (1, 3)))
        basis = torch.eye(size, dtype=torch.float64).view(-1, 1, *shape)
        matrix = functional.conv2d(basis, weight, padding=padding, dilation=spread).flatten(1)
        assert convolution_norm(weight, shape, dilation=spread) >= float(torch.linalg.matrix_norm(matrix, ord=2))


@pytest.mark.parametrize("norm", [torch.inf, -torch.inf, torch.nan, -1e-300])
def test_a_norm_is_a_number_and_not_negative(norm: float) -> None:
    with pytest.raises(UnprovenOperationError, match="finite"):
        finite(norm)
    with pytest.raises(UnprovenOperationError, match="finite"):
        times(1.0, norm)
    with pytest.raises(UnprovenOperationError, match="finite"):
        times(norm, 0.0)


def test_products_that_leave_the_range_of_numbers_are_refused() -> None:
    assert times(3.0, 0.5) == 1.5
    assert times(0.0, 1e-300) == times(1e-300, 0.0) == 0.0
    for left, right in ((1e-200, 1e-100), (1e-291, 1.0), (1.0, 1e-291), (1e200, 1e200)):
        with pytest.raises(UnprovenOperationError, match=r"range of numbers|finite"):
            times(left, right)


def test_a_single_number_has_its_own_norm() -> None:
    single = torch.full((1, 1, 1), -3.0, dtype=torch.float64)
    for norm in (gram_norm(single, 3), matrix_norm(single[0]), convolution_norm(single[None], (1, 1))):
        assert 3 < norm < 3.00001


def test_numbers_that_are_not_finite_are_refused() -> None:
    for number in (torch.nan, torch.inf):
        matrix = torch.tensor([[1.0, 0.0], [number, 1.0]])
        with pytest.raises(UnprovenOperationError, match="finite"):
            matrix_norm(matrix)
        with pytest.raises(UnprovenOperationError, match="finite"):
            convolution_norm(matrix[None, None], (3, 3))


# out, in, kernel, stride, dilation, groups, padding, height, width; the last three overlap along one axis or more
APART = [
    (6, 3, (2, 2), (2, 2), (1, 1), 1, (0, 0), 8, 8),
    (4, 6, (1, 1), (1, 1), (1, 1), 2, (0, 0), 5, 4),
    (4, 3, (2, 3), (3, 3), (1, 1), 1, (1, 2), 7, 8),
    (4, 3, (2, 2), (3, 4), (2, 3), 1, (1, 0), 9, 10),
    (4, 3, (2, 2), (2, 2), (2, 2), 1, (1, 1), 8, 8),
    (4, 3, (2, 3), (2, 2), (1, 1), 1, (0, 1), 6, 7),
    (4, 3, (3, 1), (2, 2), (1, 1), 1, (1, 0), 6, 6),
]


@pytest.mark.parametrize("case", APART, ids=str)
def test_windows_that_do_not_overlap_are_bounded_exactly_and_no_others_taken_for_them(case: tuple[Any, ...]) -> None:
    out, inner, kernel, stride, dilation, groups, padding, height, width = case
    weight = torch.rand(out, inner // groups, *kernel, generator=torch.Generator().manual_seed(1)).double()
    basis = torch.eye(inner * height * width, dtype=torch.float64).view(-1, inner, height, width)
    matrix = functional.conv2d(basis, weight, None, stride, padding, dilation, groups).flatten(1)
    truth = float(torch.linalg.matrix_norm(matrix, ord=2))
    bound = convolution_norm(weight, (height, width), stride=stride, dilation=dilation, groups=groups)
    alone = float(torch.linalg.matrix_norm(weight.view(groups, out // groups, -1), ord=2).max())
    assert truth <= bound
    if case in APART[:-3]:
        assert bound <= truth * (1 + 1e-6)
    else:  # windows that share pixels are steeper together than one alone
        assert truth > 1.1 * alone


def test_a_stack_has_the_norm_of_its_steepest_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 4, 4), (5, 3, 7), (4, 9, 2), (3, 1, 1)):
        for scale in (1e-140, 1.0, 1e140):
            stack = scale * torch.randn(*shape, dtype=torch.float64, generator=generator)
            truth = float(torch.linalg.svdvals(stack).max())
            assert truth <= stack_norm(stack) <= truth * (1 + 1e-6)
    assert stack_norm(torch.zeros(2, 3, 4)) == stack_norm(torch.zeros(2, 0, 4)) == 0.0
    with pytest.raises(UnprovenOperationError, match="finite"):
        stack_norm(torch.full((2, 1, 1), torch.nan))


def test_gram_iteration_bounds_from_above_at_every_step() -> None:
    matrices = torch.randn(5, 20, 30, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    truth = float(torch.linalg.matrix_norm(matrices, ord=2).max())
    bounds = [gram_norm(matrices, iterations) for iterations in range(12)]
    assert all(bound >= truth for bound in bounds)
    assert all(later <= sooner * (1 + 1e-12) for sooner, later in pairwise(bounds))
    assert bounds[-1] <= truth * 1.001


def test_gram_iteration_survives_extreme_scales_and_zeros() -> None:
    matrices = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scale in (1e-200, 1e200):
        truth = float(torch.linalg.matrix_norm(scale * matrices, ord=2).max())
        assert truth <= gram_norm(scale * matrices, 10) <= 1.01 * truth
    assert gram_norm(torch.zeros(1, 3, 3, dtype=torch.float64), 10) == 0


def test_a_matrix_norm_is_the_largest_singular_value_rounded_up() -> None:
    matrix = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    truth = float(torch.linalg.matrix_norm(matrix.double(), ord=2))
    assert truth < matrix_norm(matrix) < truth * (1 + 1e-6)
    assert matrix_norm(matrix) == matrix_norm(matrix.double())  # float32 would lose as much as is added
    assert matrix_norm(torch.empty(0, 3)) == 0.0


@pytest.mark.parametrize(("mode", "known"), [("bilinear", 7.0), ("bicubic", 7.2)])
def test_a_resize_from_32_to_224_has_the_known_norm(mode: str, known: float) -> None:
    tall, wide = resize_matrices(
        lambda images, size: functional.interpolate(images, size=size, mode=mode), (32, 32), (224, 224)
    )
    assert abs(matrix_norm(tall) * matrix_norm(wide) - known) < 0.05


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("size", "out"), [((5, 7), (3, 9)), ((4, 3), (6, 2)), ((2, 6), (2, 3))])
def test_a_resize_is_its_two_matrices(size: tuple[int, int], out: tuple[int, int], antialias: bool) -> None:
    def resize(images: torch.Tensor, to: list[int]) -> torch.Tensor:
        return functional.interpolate(images, size=to, mode="bilinear", antialias=antialias)

    images = torch.rand(1, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tall, wide = resize_matrices(resize, size, out)
    torch.testing.assert_close(tall @ images @ wide.T, resize(images, list(out)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_frequencies_are_float64_whatever_torchs_default_is(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(1, 1, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    basis = torch.eye(200, dtype=torch.float64).view(-1, 1, 1, 200)
    matrix = functional.conv2d(basis, weight, padding=(0, 8)).flatten(1)
    spectrum = torch.fft.fft(weight.flatten(), n=208).abs().max()  # the torus that has room for all of it
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        bound = convolution_norm(weight, (1, 200))
    finally:
        torch.set_default_dtype(before)
    assert bound >= float(torch.linalg.matrix_norm(matrix, ord=2))
    assert bound == pytest.approx(float(spectrum) * (1 + 1e-7), rel=1e-12)


def test_norms_of_the_smallest_numbers_have_lost_digits_and_are_refused() -> None:
    smallest = torch.full((1, 2), 2.0**-1074, dtype=torch.float64)  # its norm is sqrt(2) times that, which is no number
    for bound in (
        lambda: matrix_norm(smallest),
        lambda: gram_norm(smallest[None], 3),
        lambda: convolution_norm(smallest.view(1, 1, 1, 2), (3, 3)),
        lambda: scaled_rows(
            torch.full((2, 3), 1e-200, dtype=torch.float64), torch.tensor([1.0, 1e-100], dtype=torch.float64)
        ),
    ):
        with pytest.raises(UnprovenOperationError, match=r"range of numbers|finite"):
            bound()
    negative = torch.tensor([[-3.0]]).double()
    assert scaled_rows(negative, negative[0]).tolist() == [[9.0]]
    assert scaled_rows(negative, -negative[0]).tolist() == [[-9.0]]
    nothing = torch.zeros(2, 3, dtype=torch.float64)
    assert matrix_norm(nothing) == gram_norm(nothing[None], 3) == 0
    assert torch.equal(scaled_rows(nothing, torch.tensor([1e-200, 0.0], dtype=torch.float64)), nothing)
    assert scaled_rows(nothing + 1, torch.tensor([2.0, 0.0])).tolist() == [[2.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 9, 4), (2, 64, 64)])
def test_stacks_with_zeros_and_in_float32_are_bounded_by_their_own_norm(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """A number that is 0 takes nothing from the others; Gram matrices in float32 would be off by up to 1e-6."""
    for seed in range(5):
        stack = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        stack[0, 0], stack[1, :, 0] = 0, 0
        truth = float(torch.linalg.svdvals(stack.double()).amax())
        assert truth <= stack_norm(stack) <= truth * (1 + 1.5e-7)

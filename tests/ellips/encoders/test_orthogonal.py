from __future__ import annotations

import copy

import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from ellips.encoders import OrthogonalMuon
from ellips.encoders.orthogonal import (
    equalised,
    orthogonality_error,
    polar,
    polar_step,
    random_orthogonal,
    truncated_exponential,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def skew(*shape: int, size: float) -> Tensor:
    square = torch.randn(*shape, shape[-1], dtype=torch.float64)
    tangent: Tensor = square - square.mT
    return size * tangent / torch.linalg.matrix_norm(tangent, 2)[..., None, None]


def test_random_matrices_are_orthogonal_and_differ() -> None:
    drawn = random_orthogonal(3, 2, 5)
    assert drawn.shape == (3, 2, 5, 5)
    assert orthogonality_error(drawn) < 1e-6
    assert len(set(drawn[..., 0, 0].flatten().tolist())) == 6
    assert orthogonality_error(drawn + 1e-2) > 1e-3
    # Uniform: without the signs of the triangle's diagonal a first entry would never be positive.
    assert 0.3 < float((random_orthogonal(400, 3)[:, 0, 0] > 0).double().mean()) < 0.7


@pytest.mark.parametrize("size", [0.01, 0.1, 0.5])
def test_the_exponentials_series_is_as_close_as_it_says(size: float) -> None:
    tangent = skew(4, 6, size=size)
    expected = torch.linalg.matrix_exp(tangent) - torch.eye(6, dtype=torch.float64)
    error = torch.linalg.matrix_norm(truncated_exponential(tangent) - expected, 2).max()
    assert size**4 / 100 < error <= size**4 * torch.e**size / 24


def test_the_polar_factor_is_scipys_and_newton_schulz_leads_there() -> None:
    matrices = random_orthogonal(2, 6).double() + 0.02 * torch.randn(2, 6, 6, dtype=torch.float64)
    nearest = torch.stack([torch.from_numpy(scipy.linalg.polar(matrix.numpy())[0]) for matrix in matrices])
    torch.testing.assert_close(polar(matrices), nearest, atol=1e-13, rtol=0)
    errors = [orthogonality_error(matrices)]
    for _ in range(4):
        matrices = polar_step(matrices)
        errors.append(orthogonality_error(matrices))
    assert errors[1] <= 2 * errors[0] ** 2
    assert errors[-1] < 1e-14
    torch.testing.assert_close(matrices, nearest, atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_planes_are_turned_by_about_one_angle(dtype: torch.dtype) -> None:
    """Whatever the sizes of the gradients and of their planes, down to a hundredth of the largest."""
    basis = random_orthogonal(3, 12)
    angles = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05, 0.02])
    planes = torch.block_diag(*(angle * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) for angle in angles))
    tangent = torch.tensor([1e-12, 1.0, 1e12])[:, None, None] * (basis @ planes @ basis.mT)
    tangent = (tangent - tangent.mT) / 2
    turned = equalised(tangent, dtype=dtype)
    assert turned.dtype == torch.float32
    assert torch.equal(turned, -turned.mT)
    values = torch.linalg.svdvals(turned)
    assert 0.68 < float(values.min()) <= float(values.max()) < 1.21
    for index in range(3):  # downhill
        assert float((turned[index] * tangent[index]).sum()) > 0.6 * float(torch.linalg.svdvals(tangent[index]).sum())


@pytest.mark.parametrize("width", [6, 63, 384])
def test_angles_end_within_the_bounds_whatever_the_width(width: int) -> None:
    """All that are above a fiftieth of the Schatten norm; of wide random matrices those are nearly all."""
    tangent = skew(2, width, size=1.0)
    spectra = torch.linalg.svdvals(tangent)
    counted = spectra > (spectra**8).sum(1, keepdim=True) ** 0.125 / 50
    values = torch.linalg.svdvals(equalised(tangent, dtype=torch.float64))
    # The polynomial keeps no order, but what is below the bound stays below what is above it.
    for found, count in zip(values, counted.sum(1).tolist(), strict=True):
        assert count > 0.9 * width - 1
        assert 0.68 < float(found[:count].min()) <= float(found[:count].max()) < 1.21
    assert (values < 0.68).double().mean() < 0.05


def test_where_there_is_no_gradient_nothing_turns() -> None:
    assert torch.equal(equalised(torch.zeros(2, 3, 3)), torch.zeros(2, 3, 3))


def test_a_step_turns_by_the_learning_rate_whatever_the_width() -> None:
    for width in (4, 64):
        matrices = nn.Parameter(random_orthogonal(2, width).double())
        start = matrices.detach().clone()
        matrices.grad = torch.randn_like(matrices)
        OrthogonalMuon([{"params": [matrices], "orthogonal": True}], lr=0.02, polar_interval=10**9).step()
        moved = torch.linalg.matrix_norm(matrices.detach() - start, 2)
        assert 0.6 * 0.02 < float(moved.min()) <= float(moved.max()) < 1.2 * 0.02


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 3e-6)])
def test_matrices_stay_orthogonal_whatever_the_gradients_are(dtype: torch.dtype, limit: float) -> None:
    matrices = nn.Parameter(polar(random_orthogonal(2, 3, 8).to(dtype)))
    start = matrices.detach().clone()
    optimizer = OrthogonalMuon([{"params": [matrices], "orthogonal": True}], lr=0.02, weight_decay=0.5)
    for step in range(100):
        matrices.grad = 10.0 ** (step % 5) * torch.randn_like(matrices)
        optimizer.step()
        if step % optimizer.polar_interval == optimizer.polar_interval - 1:
            assert orthogonality_error(matrices) < limit
    assert (matrices.detach() - start).abs().max() > 0.1


def test_it_finds_the_rotation_that_is_known_to_be_nearest() -> None:
    """Orthogonal Procrustes: ‖W A − B‖ is smallest at the polar factor of B Aᵀ (Schönemann 1966)."""
    given, wanted = torch.randn(2, 5, 40, dtype=torch.float64)
    best = polar(wanted @ given.mT)
    turned = best.clone()
    turned[0] = -turned[0]  # of the other determinant: not to be reached from here
    for start, reached in ((best @ torch.linalg.matrix_exp(skew(5, size=1.0)), True), (turned, False)):
        assert bool((nearest_from(start, given, wanted) - best).abs().max() < 1e-3) is reached


def nearest_from(start: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
    matrix = nn.Parameter(start)
    optimizer = OrthogonalMuon([{"params": [matrix], "orthogonal": True}], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.001, 150)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = (matrix @ given - wanted).square().sum()
        loss.backward()
        return loss

    for _ in range(150):
        assert float(optimizer.step(closure).detach()) > 0
        schedule.step()
    return matrix.detach()


def test_other_groups_are_those_of_adam() -> None:
    first = nn.Parameter(torch.randn(4))
    second = nn.Parameter(first.detach().clone())
    matrix = nn.Parameter(random_orthogonal(3))
    ours = OrthogonalMuon([{"params": [matrix], "orthogonal": True}, {"params": [first]}], lr=0.1, weight_decay=0.1)
    adam = torch.optim.AdamW([second], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(5):
        matrix.grad = torch.randn(3, 3)
        first.grad = torch.randn(4)
        second.grad = first.grad.clone()
        ours.step()
        adam.step()
    assert torch.equal(first, second)


def test_it_goes_on_from_its_state() -> None:
    gradients = torch.randn(6, 2, 4, 4)

    def walked(steps: range, matrices: nn.Parameter, optimizer: OrthogonalMuon) -> Tensor:
        for step in steps:
            matrices.grad = gradients[step].clone()
            optimizer.step()
        return matrices.detach().clone()

    def fresh(start: Tensor) -> tuple[nn.Parameter, OrthogonalMuon]:
        matrices = nn.Parameter(start.clone())
        return matrices, OrthogonalMuon([{"params": [matrices], "orthogonal": True}], lr=0.1)

    start = random_orthogonal(2, 4)
    whole = walked(range(6), *fresh(start))
    matrices, optimizer = fresh(start)
    half = walked(range(3), matrices, optimizer)
    matrices, other = fresh(half)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(walked(range(3, 6), matrices, other), whole)  # step 4 has a polar step: it counts on, too


def test_a_polar_step_never_is_refused() -> None:
    with pytest.raises(ValueError, match="polar_interval"):
        OrthogonalMuon([nn.Parameter(torch.eye(2))], polar_interval=0)

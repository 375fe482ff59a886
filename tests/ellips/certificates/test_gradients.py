from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates.geometry import Geometry
from tests.ellips.mixtures import KINDS, random_mixture, random_points

NAMES = ("means", "precision_factors", "log_priors")


def _points(ellips: Ellips, method: str) -> Tensor:
    """Points where the radius is smooth: finite, not 0, and no second rival about as near."""
    z = random_points(ellips, 60, 3)
    certificate = ellips.certify(z, method)  # type: ignore[arg-type]
    return z[certificate.radius.isfinite() & (certificate.radius > 0.05)][:4]


@pytest.mark.parametrize("method", ["exact", "pairwise"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_radius(kind: str, method: str) -> None:
    _compare_gradients(kind, method, eps=1e-6, atol=1e-6)


def _compare_gradients(kind: str, method: str, eps: float, atol: float) -> None:
    ellips = random_mixture(kind, 3, 4, seed=8)
    z = _points(ellips, method).requires_grad_()
    ellips.trainable_()

    def radius(z: Tensor, *values: Tensor) -> Tensor:
        certify = torch.func.functional_call(
            _Certifier(ellips, method), dict(zip(_prefixed(), values, strict=True)), (z,)
        )
        assert isinstance(certify, Tensor)
        return certify

    values = [getattr(ellips, name) for name in NAMES]
    if method == "pairwise" and kind in ("isotropic", "shared", "spherical"):
        # All eigenvalues of W coincide, and its smallest is not differentiable there.
        values[1] = values[1].detach()
    inputs = (z, *values)
    assert torch.autograd.gradcheck(radius, inputs, eps=eps, atol=atol, rtol=1e-4)


class _Certifier(torch.nn.Module):
    def __init__(self, ellips: Ellips, method: str) -> None:
        super().__init__()
        self.ellips, self.method = ellips, method

    def forward(self, z: Tensor) -> Tensor:
        return self.ellips.certify(z, self.method).radius  # type: ignore[arg-type]


def _prefixed() -> list[str]:
    return [f"ellips.{name}" for name in NAMES]


@pytest.mark.parametrize("method", ["exact", "pairwise"])
def test_gradients_under_weyls_bound(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Geometry, "affordable", False)
    # The iterative solver's radii are good to 1e-11, which differences of a small step would magnify.
    _compare_gradients("full", method, eps=1e-4, atol=1e-5)


def test_gradient_in_the_hard_case() -> None:
    means = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double()
    covariances = torch.stack([torch.eye(2), torch.diag(torch.tensor([9.0, 1.0]))]).double()
    ellips = Ellips.from_parameters(means, covariances, torch.tensor([0.5, 0.5]))
    z = torch.tensor([[0.0, -0.3]]).double().requires_grad_()
    ellips.certify(z).radius.sum().backward()
    assert z.grad is not None
    # Two boundary points are nearest, left and right of the axis, so off the axis the radius falls on both sides: the
    # gradient is that of one side.
    step, at = 1e-6, float(ellips.certify(z.detach()).radius)
    for axis in range(2):
        move = torch.nn.functional.one_hot(torch.tensor(axis), 2) * step
        right, left = (float(ellips.certify(z.detach() + sign * move).radius) for sign in (1, -1))
        one_sided = [(right - at) / step, (at - left) / step]
        assert min(abs(float(z.grad[0, axis]) - value) for value in one_sided) < 1e-4


def test_gradient_at_a_tie_and_at_infinity_is_finite() -> None:
    eye = torch.eye(2).double().expand(2, 2, 2)
    ellips = Ellips.from_parameters(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), eye, torch.tensor([0.5, 0.5]))
    z = torch.tensor([[0.0, 1.0], [-0.5, 0.0]]).double().requires_grad_()
    ellips.certify(z).radius.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]).double(), rtol=1e-9, atol=1e-9)
    same = Ellips.from_parameters(torch.zeros(2, 2), eye, torch.tensor([0.7, 0.3]))
    z = torch.ones(1, 2).double().requires_grad_()
    radius = same.certify(z).radius
    radius.clamp(max=10).sum().backward()
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_no_graph_without_gradients_and_values_agree() -> None:
    ellips = random_mixture("full", 3, 4)
    z = random_points(ellips, 20)
    plain = ellips.certify(z)
    assert not plain.radius.requires_grad
    with_graph = ellips.certify(z.clone().requires_grad_())
    assert with_graph.radius.requires_grad
    assert torch.equal(with_graph.radius, plain.radius)
    with torch.inference_mode():
        ellips.derived("probe", lambda: None)
        ellips.certify(z)
    ellips.trainable_()
    ellips.certify(z).radius.sum().backward()
    assert ellips.means.grad is not None


def test_training_the_mixture_by_its_radius_moves_the_radius() -> None:
    ellips = random_mixture("full", 3, 4).trainable_()
    z = random_points(ellips, 40)
    optimizer = torch.optim.SGD(ellips.parameters(), lr=1e-2)
    before = ellips.certify(z).radius.detach().clamp(max=5).mean()
    for _ in range(5):
        optimizer.zero_grad()
        (-ellips.certify(z).radius.clamp(max=5).mean()).backward()
        optimizer.step()
    assert ellips.certify(z).radius.detach().clamp(max=5).mean() > before

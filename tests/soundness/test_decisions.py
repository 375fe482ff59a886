"""Ways to make a mixture predict something else than its stored numbers say: its votes are its predictions still."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from ellips import Ellips
from ellips.certificates import decisions
from ellips.gaussians import Mixture
from ellips.input_certifiers import Chain, SmoothedDecision
from tests.ellips.mixtures import random_mixture, random_points

DIM = 64
FAVOUR = torch.tensor([0.0, 0.0, 1e6], dtype=torch.float64)


class OtherForward(Ellips):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) + FAVOUR


class OtherPredict(Ellips):
    def predict(self, z: Tensor) -> Tensor:
        return torch.full((len(z),), 2)


class OtherPoints(Ellips):
    def validate(self, z: Tensor) -> Tensor:
        return -super().validate(z)


class OtherOffsets(Ellips):
    favour = 0.0

    @property
    def offsets(self) -> Tensor:
        return super().offsets + self.favour * FAVOUR


class OtherCall(Ellips):
    def __call__(self, z: Tensor) -> Tensor:
        return super().__call__(z) + FAVOUR


def patched(mixture: Ellips) -> None:
    mixture.predict = lambda z: torch.full((len(z),), 2)  # type: ignore[method-assign]  # as a user may


def hooked(mixture: Ellips) -> None:
    mixture.register_forward_hook(lambda module, args, scores: scores + FAVOUR)


def hooked_before(mixture: Ellips) -> None:
    mixture.register_forward_pre_hook(lambda module, args: (-args[0],))


@pytest.mark.parametrize("kind", [OtherForward, OtherPredict, OtherPoints, OtherCall])
def test_methods_of_a_subclass_vote(kind: type[Ellips]) -> None:
    plain = random_mixture("full", 3, DIM)
    own = kind(3, DIM)
    own.load_state_dict(plain.state_dict())
    require_other_votes(own, random_points(plain, 40))


def test_what_a_subclass_remembers_elsewhere_votes_as_it_is_now() -> None:
    own = OtherOffsets(3, DIM)
    own.load_state_dict(random_mixture("full", 3, DIM).state_dict())
    z = random_points(own, 40)
    own.certify(z[:1])  # what is gathered for it is remembered by the stored numbers
    own.favour = 1.0
    assert (own.predict(z) == 2).all()
    assert torch.equal(decisions(own)(z), own.predict(z))


@pytest.mark.parametrize("change", [patched, hooked, hooked_before])
def test_what_is_hung_on_one_mixture_votes(change: Callable[[Ellips], None]) -> None:
    mixture = random_mixture("full", 3, DIM)
    change(mixture)
    require_other_votes(mixture, random_points(mixture, 40))


@pytest.mark.parametrize(
    ("register", "hook"),
    [
        (register_module_forward_hook, lambda module, args, out: out + FAVOUR if isinstance(module, Mixture) else out),
        (register_module_forward_pre_hook, lambda module, args: (-args[0],) if isinstance(module, Mixture) else args),
    ],
)
def test_what_is_hung_on_all_modules_votes(
    register: Callable[..., RemovableHandle], hook: Callable[..., object]
) -> None:
    mixture = random_mixture("full", 3, DIM)
    with register(hook):  # and then no more
        require_other_votes(mixture, random_points(mixture, 40))


def test_a_method_that_was_exchanged_for_all_mixtures_votes() -> None:
    mixture, forward = random_mixture("full", 3, DIM), Mixture.forward
    with mock.patch.object(Mixture, "forward", lambda self, z: forward(self, z) + FAVOUR):
        require_other_votes(mixture, random_points(mixture, 40))


def require_other_votes(mixture: Ellips, z: Tensor) -> None:
    """Expect predictions other than those of the stored numbers, and just these as votes."""
    plain = Ellips(3, DIM)
    plain.load_state_dict(mixture.state_dict())
    expected = mixture.predict(z)
    assert not torch.equal(expected, (plain.offsets - plain.structure.squares(z, plain.means)).argmax(1))
    assert torch.equal(decisions(mixture)(z), expected)
    latents = z.float().view(len(z), 1, 8, 8)
    votes = SmoothedDecision(1e-6, 40, alpha=0.1, stopping="fixed").vote(Chain(torch.nn.Flatten(), mixture), latents)
    assert torch.equal(votes.prediction, mixture.predict(latents.flatten(1)))


@pytest.mark.parametrize("scales", [(1e-30, 1e30), (1e-38, 1e-38), (1e38, 1e38), (1e-12, 1.0), (1e-45, 1e45)])
@pytest.mark.parametrize("away", [0.0, 1e-20, 1.0, 1e20, 1e40])
@pytest.mark.parametrize("priors", [(0.5, 0.5), (1 - 1e-300, 1e-300)])
def test_numbers_beyond_float32_on_either_side_change_no_class(
    scales: tuple[float, float], away: float, priors: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(2, DIM, DIM, dtype=torch.float64, generator=generator))[0]
    spectra = torch.tensor(scales, dtype=torch.float64)[:, None] ** 2 * torch.logspace(0, -6, DIM, dtype=torch.float64)
    covariances = (turn * spectra.unsqueeze(1)) @ turn.mT
    means, z = torch.randn(2, 5, DIM, dtype=torch.float64, generator=generator)
    shares = torch.tensor(priors, dtype=torch.float64)
    ellips = Ellips.from_parameters(away * means[:2], (covariances + covariances.mT) / 2, shares)
    decide = decisions(ellips)
    for size in (0.0, 1e-45, 1e-30, 1e-3, 1.0, 1e19, 1e38, 1e60):
        points = torch.cat([size * z, away * means[:1] + size * z])
        assert torch.equal(decide(points), ellips.predict(points))

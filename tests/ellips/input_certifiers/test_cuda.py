from __future__ import annotations

import pytest
import torch
from torch import nn

from ellips import Ellips
from ellips.input_certifiers import ByConstant, Chain, InputCertifier, MarginClever, SmoothedDecision, SmoothedEncoder
from ellips.lipschitz import Clever, JacobianNorm, SpectralProduct
from tests.ellips.input_certifiers.chains import case

CERTIFIERS = {
    "Clever": ByConstant(Clever(num_batches=5, num_samples=8)),
    "MarginClever": MarginClever(num_batches=5, num_samples=8),
    "JacobianNorm": ByConstant(JacobianNorm()),
    "SmoothedEncoder": SmoothedEncoder(num_samples=100),
    "SpectralProduct": ByConstant(SpectralProduct()),
    "SpectralProduct by rules": ByConstant(SpectralProduct(dense_limit=0)),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("certifier", CERTIFIERS.values(), ids=CERTIFIERS)
def test_a_cuda_device_gives_what_the_processor_gives(certifier: InputCertifier) -> None:
    torch.manual_seed(0)
    function = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
    images = torch.rand(3, 1, 6, 6)
    means = torch.randn(2, 3, dtype=torch.float64)
    classifier = Ellips.from_parameters(means, torch.eye(3).double().expand(2, 3, 3), torch.tensor([0.5, 0.5]))
    here = certifier.certify(*case(Chain(function, classifier), images))
    there = certifier.certify(*case(Chain(function.cuda(), classifier.cuda()), images.cuda()))
    assert there.radius.is_cuda
    assert torch.equal(here.prediction, there.prediction.cpu())
    torch.testing.assert_close(here.radius, there.radius.cpu(), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_votes_on_a_cuda_device_agree_with_those_on_the_processor() -> None:
    """The noise is drawn where the images are, so that it is other noise."""
    means = torch.tensor([[-0.5], [0.5]]).double()
    ellips = Ellips.from_parameters(means, 0.1 * torch.ones(2, 1, 1).double(), torch.tensor([0.5, 0.5]))
    images = torch.rand(4, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([0.9, 0.3, -0.3, -0.9])
    certifier = SmoothedDecision(num_samples=2000, stopping="fixed")
    here = certifier.certify(*case(Chain(lambda x: x[:, 0, 0, :1], ellips), images))
    there = certifier.certify(*case(Chain(lambda x: x[:, 0, 0, :1], ellips.cuda()), images.cuda()))
    assert there.radius.is_cuda
    assert there.prediction.tolist() == here.prediction.tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(here.radius, there.radius.cpu(), rtol=0.1, atol=0)

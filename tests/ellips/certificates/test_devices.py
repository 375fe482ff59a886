from __future__ import annotations

import pytest
import torch

from ellips.certificates import METHODS, check
from tests.ellips.mixtures import KINDS, random_mixture, random_points


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("kind", [*KINDS, "many"])
def test_a_gpu_gives_the_radii_of_the_cpu(kind: str) -> None:
    shape = (120, 64) if kind == "many" else (8, 24)
    ellips = random_mixture("full" if kind == "many" else kind, *shape, seed=5, spread=0.4)
    z = random_points(ellips, 200, 5)
    expected = {method: ellips.certify(z, method) for method in METHODS}
    ellips, z = ellips.cuda(), z.cuda()
    for method in METHODS:
        certificate = ellips.certify(z, method)
        assert certificate.radius.device.type == "cuda"
        torch.testing.assert_close(certificate.cpu().radius, expected[method].radius, rtol=1e-8, atol=1e-10)
        assert check(ellips, z, certificate).all()

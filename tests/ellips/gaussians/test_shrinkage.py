"""Covariances shrunk by scikit-learn's estimators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS, LedoitWolf
from torch import Tensor

from ellips import Ellips
from ellips.gaussians import fit_shrunk


def make_latents() -> tuple[Tensor, Tensor]:
    labels = torch.arange(15) % 3
    noise = torch.randn(15, 8, generator=torch.Generator().manual_seed(0))
    return 2 * torch.eye(3, 8)[labels] + torch.linspace(0.2, 1.5, 8) * noise, labels


@pytest.mark.parametrize("covariance_type", ["full", "diagonal"])
@pytest.mark.parametrize(("name", "oracle"), [("ledoit_wolf", LedoitWolf), ("oas", OAS)])
def test_scikit_learns_estimators_are_fitted_per_class(name: str, oracle: type, covariance_type: str) -> None:
    # 5 samples per class in 8 dimensions: the sample covariance is singular, the estimate is not.
    latents, labels = make_latents()
    ellips = Ellips(3, 8, covariance_type=covariance_type)  # type: ignore[arg-type]
    assert fit_shrunk(ellips, latents, labels, name) is ellips  # type: ignore[arg-type]
    for k in range(3):
        expected = oracle().fit(latents[labels == k].double().numpy()).covariance_
        if covariance_type == "diagonal":
            expected = np.diag(np.diag(expected))
        np.testing.assert_allclose(ellips.covariances[k].numpy(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ellips.priors, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_shrinkage_formulas_refuse_what_they_cannot_use() -> None:
    latents, labels = make_latents()
    with pytest.raises(ValueError, match="estimator"):
        fit_shrunk(Ellips(3, 8), latents, labels, "mcd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="class 3"):
        fit_shrunk(Ellips(4, 8), latents, labels, "oas")

"""Class covariances by scikit-learn's shrinkage formulas."""

from __future__ import annotations

from importlib import import_module
from typing import Literal, get_args

import torch
from torch import Tensor

from ellips.gaussians.mixture import Mixture
from ellips.validation import one_of, validate_labels, validate_latents

Estimator = Literal["ledoit_wolf", "oas"]


def fit_shrunk(mixture: Mixture, latents: Tensor, labels: Tensor, estimator: Estimator) -> Mixture:
    """Fit the Gaussians with scikit-learn's Ledoit–Wolf or OAS covariance of each class.

    Both shrink towards ``(tr Σ_k / d) I`` by an amount that minimises the expected squared error of the covariance,
    per class; neither knows of certificates. They need the samples themselves, not only their moments, and take the
    place of the mixture's own ``pooling`` and ``shrinkage``, which are not applied.

    Args:
        mixture: The mixture to fit, in place.
        latents: Shape ``(N, d)``.
        labels: Shape ``(N,)``.
        estimator: ``"ledoit_wolf"`` or ``"oas"``.

    Returns:
        ``mixture``, fitted.

    Raises:
        ValueError: If ``estimator`` is unknown, covariances are of low rank, or a class has fewer than two samples.

    Source: Ledoit and Wolf 2004; Chen, Wiesel, Eldar and Hero 2010; as implemented in scikit-learn.
    """
    one_of(get_args(Estimator), estimator=estimator)
    if mixture.rank is not None:
        raise ValueError(
            f"Expected full or diagonal covariances for {estimator} but got covariance_type='low_rank'; use pooling "
            "and shrinkage (covariance_estimator='moments')."
        )
    validate_latents(latents, mixture.dim, "latents")
    validate_labels(labels, mixture.num_classes, latents.shape[0])
    # Imported when asked for: scikit-learn and pandas would take a fifth of the time of `import ellips`.
    compute = getattr(import_module("sklearn.covariance"), estimator)
    means, covariances, counts = [], [], []
    for k in range(mixture.num_classes):
        rows = latents[labels == k].detach().double().cpu()
        if len(rows) < 2:
            raise ValueError(f"Expected at least 2 samples of class {k} for {estimator} but got {len(rows)}.")
        covariance = torch.from_numpy(compute(rows.numpy())[0])
        means.append(rows.mean(0))
        covariances.append(covariance.diagonal() if mixture.covariance_type == "diagonal" else covariance)
        counts.append(len(rows))
    priors = torch.tensor(counts, dtype=torch.float64) / len(labels)
    fitted = Mixture.from_parameters(torch.stack(means), torch.stack(covariances), priors)
    mixture.load_state_dict(fitted.state_dict())
    return mixture

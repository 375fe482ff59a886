"""First, plain version of the three certificates (all pairs decomposed); replaced by the fast solver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ellips.certificates.certificate import METHODS, Certificate, Method, round_down

if TYPE_CHECKING:
    from ellips.classifier import Ellips


def certify(ellips: Ellips, z: Tensor, method: Method = "exact", *, chunk_size: int | None = None) -> Certificate:
    """Certify predictions; see :meth:`ellips.classifier.Ellips.certify`."""
    if method not in METHODS:
        raise ValueError(f"Expected `method` to be one of {METHODS} but got {method!r}.")
    with torch.no_grad():
        return Certificate.cat([_certify(ellips, part, method) for part in ellips.check(z).split(chunk_size or 1024)])


def _certify(ellips: Ellips, z: Tensor, method: Method) -> Certificate:
    scores = ellips(z)
    prediction = scores.argmax(1)
    rows = torch.arange(len(z), device=z.device)
    margins = scores[rows, prediction].unsqueeze(1) - scores
    precisions = ellips.precisions
    gradients = torch.einsum("kij,nkj->nki", precisions, z.unsqueeze(1) - ellips.means)
    b = gradients - gradients[rows, prediction].unsqueeze(1)
    lam, q = torch.linalg.eigh(precisions.unsqueeze(0) - precisions.unsqueeze(1))
    lam, q = lam[prediction], q[prediction]
    c, low = b.norm(dim=-1), (-lam[..., 0]).clamp(min=0)
    own = torch.nn.functional.one_hot(prediction, ellips.num_classes).bool()
    if method == "theorem":
        m = margins.masked_fill(own, torch.inf).amin(1, keepdim=True).expand_as(margins)
        c, low = c.amax(1, keepdim=True).expand_as(c), low.masked_fill(own, 0).amax(1, keepdim=True).expand_as(low)
    else:
        m = margins
    radius = m / ((c.square() + low * m).sqrt() + c)
    t = radius / (low * radius + c)
    if method == "exact":
        beta2 = torch.einsum("nkij,nki->nkj", q, b).square()
        mu, u = lam + low.unsqueeze(-1), radius / c
        for _ in range(60):
            w = 1 / (1 + u.unsqueeze(-1) * mu)
            s1, s2, s3 = ((beta2 * w**p).sum(-1) for p in (1, 2, 3))
            phi = m - u * (s1 + s2 * (1 + low * u))
            u = (u + phi / (2 * (1 + u * low) * s3)).clamp(min=0)
        s1 = (beta2 / (1 + u.unsqueeze(-1) * mu)).sum(-1)
        t = u / (1 + u * low)
        radius = torch.maximum((t * (m - u * s1)).clamp(min=0).sqrt(), radius)
    radius = radius.nan_to_num(nan=0.0).masked_fill(own, torch.inf)
    best = radius.min(1)
    rival = torch.where(margins.masked_fill(own, torch.inf).amin(1) <= 0, margins.masked_fill(own, torch.inf).argmin(1), best.indices)
    return Certificate(prediction, round_down(best.values, 64), rival, margins[rows, rival], t[rows, rival], method)

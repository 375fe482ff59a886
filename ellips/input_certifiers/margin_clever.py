"""CLEVER (Weng et al. 2018) on score margins, as its authors meant it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ellips.certificates import Certificate, round_down
from ellips.chunks import Chunks
from ellips.input_certifiers.base import AuditTarget, Chain, InputCertifier, chain_target
from ellips.lipschitz.base import checked
from ellips.lipschitz.clever import BallSampler
from ellips.lipschitz.products import record, reverse_product
from ellips.types import ImageMap, Series, Soundness


class Margins(NamedTuple):
    """Score margins of N images and an estimated constant for each.

    Attributes:
        prediction: Shape ``(N,)``, int64.
        margin: Shape ``(N, K)``: the prediction's score minus each class's.
        constant: Shape ``(N, K)``, float64: Lipschitz constants of the margins; 0 for the prediction itself.
        pvalue: Shape ``(N, K)``: Kolmogorov-Smirnov p-values of the fits; 1 for the prediction itself.
    """

    prediction: Tensor
    margin: Tensor
    constant: Tensor
    pvalue: Tensor

    def radius(self, ball_radius: float) -> tuple[Tensor, Tensor]:
        """Return ``min(margin / constant, ball)`` over the rivals, and the rival that attains it, shapes ``(N,)``."""
        ratio = torch.where(self.margin > 0, self.margin / self.constant, 0.0)  # flat margins: infinite, capped below
        ratio = ratio.scatter(1, self.prediction[:, None], float("inf"))
        radius, rival = ratio.min(dim=1)
        return radius.clamp_max(ball_radius), rival


@dataclass(frozen=True)
class MarginClever(BallSampler, InputCertifier):
    """CLEVER as its authors meant it, on each score margin by itself: ``estimated``.

    For every rival the gradient norm of ``score_prediction - score_rival`` is sampled in the ball and fitted; the
    input radius is the smallest ratio of margin to constant. It looks past the latent certificate, so no worst case
    over all latent directions enters, which makes it larger where the ball is about as large as the radius; margins
    are quadratic in the latent, so in a far larger ball their gradients, and with them the constants, grow.
    One forward pass and K - 1 reverse products a point.
    Settings of :class:`BallSampler`.

    Raises:
        ValueError: If a setting is out of range.
    """

    def margins(self, scores: ImageMap, images: Tensor) -> Margins:
        """Estimate the Lipschitz constants of all margins of each image.

        Args:
            scores: Maps images to scores ``(N, K)``.
            images: Shape ``(N, C, H, W)``, values in [0, 1].
        """
        chunks = self.chunks()
        found = [self._margins_of(scores, image, chunks) for image in images]
        if not found:
            empty = scores(images).double()
            return Margins(empty.argmax(1), empty, empty, empty)
        return Margins(*(torch.stack(column) for column in zip(*found, strict=True)))

    def _margins_of(self, scores: ImageMap, image: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.no_grad():
            values = scores(image[None])[0].double()
        prediction = values.argmax()

        def of_chunk(points: Tensor) -> tuple[Tensor]:
            return (_margin_gradients(scores, points, int(prediction)),)

        norms = torch.cat([chunks.run(of_chunk, points)[0] for points in self.points(image)])
        constant, pvalue = torch.zeros_like(values), torch.ones_like(values)
        for rival in range(len(values)):
            if rival != int(prediction):
                extreme = self.extreme(norms[:, rival])
                constant[rival], pvalue[rival] = extreme.value, extreme.pvalue
        return prediction, values[prediction] - values, constant, pvalue

    def certify(self, chain: Chain, images: Tensor, latents: Tensor, certificate: Certificate) -> Certificate:
        """Divide margins by their constants; latents and their certificate have no part in it.

        See :meth:`InputCertifier.certify`.
        """
        with checked(chain.latents, images) as inputs:
            margins = self.margins(chain.scores, inputs)
        radius, rival = margins.radius(self.radius)
        return Certificate(
            prediction=margins.prediction,
            radius=round_down(radius),
            rival=rival,
            margin=margins.margin.gather(1, rival[:, None])[:, 0],
            multiplier=torch.full_like(radius, torch.nan),  # no latent certificate stands behind this one
            method="margin",
            soundness="estimated",
            space="input",
            lipschitz=margins.constant.gather(1, rival[:, None])[:, 0],
            ball_radius=torch.full_like(radius, self.radius),
            source=repr(self),
            diagnostics={"ks_pvalue": margins.pvalue.gather(1, rival[:, None])[:, 0]},
        )

    def target(self, chain: Chain) -> AuditTarget:
        """Name the chain itself; the constants are those of its margins, not of its latents."""
        return chain_target(chain, constant=False)

    @property
    def strongest(self) -> Soundness:
        """Nothing is guaranteed."""
        return "estimated"

    def series(self, method: str) -> Series:
        """Return the series of score margins, whatever the latent method."""
        return Series("input", "margin", "clever")


def _margin_gradients(scores: Callable[[Tensor], Tensor], points: Tensor, prediction: int) -> Tensor:
    """Return the gradient norms of all margins to ``prediction`` at each point, shape ``(M, K)``, float64."""

    def margins(at: Tensor) -> Tensor:
        value = scores(at)
        return value[:, prediction, None] - value

    leaves, value = record(margins, points)
    norms = torch.zeros(value.shape, dtype=torch.float64, device=points.device)
    for rival in range(value.shape[1]):
        if rival != prediction:
            cotangent = torch.zeros_like(value)
            cotangent[:, rival] = 1
            gradient = reverse_product(value, leaves, cotangent)
            norms[:, rival] = torch.linalg.vector_norm(gradient.flatten(1).double(), dim=1)
    return norms

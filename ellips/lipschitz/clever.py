"""CLEVER (Weng et al. 2018): a sampled estimate of the Lipschitz constant, for latents and for score margins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, get_args

import torch
from torch import Tensor

from ellips.certificates.certificate import Certificate, round_down
from ellips.lipschitz.base import ImageMap, LipschitzBound, LipschitzSource, checked
from ellips.lipschitz.extreme_value import Extreme, fit_maxima
from ellips.lipschitz.jacobian import latent_dim, spectral_norms
from ellips.lipschitz.products import record, reverse_product
from ellips.lipschitz.sampling import Sampling, image_generator, sample_ball

if TYPE_CHECKING:
    from ellips.certificates import Method
    from ellips.classifier import Ellips


RANDOM_PART = 0.3
"""About the length of the random vector that is added to a neighbour's singular vector of length 1."""


class _Sampler(LipschitzSource):
    """What both estimators share: settings, the sampled points, and the fits.

    Args:
        radius: L2 radius, on [0, 1] pixels, of the ball that is sampled, and on which alone the estimate is claimed.
        num_batches: Batches per image; each gives one maximum to fit. The paper takes 500.
        num_samples: Points per batch. The paper takes 1,024.
        sampling: ``volume`` or ``radial``; see :func:`ellips.lipschitz.sampling.sample_ball`.
        min_pvalue: The fit counts only if its Kolmogorov-Smirnov p-value is at least this; else the sample maximum.
        max_stretch: Nor does it count when it exceeds the sample maximum by more than this factor.
        chunk_size: Points that go through the network at once.
        seed: Seed; each image's points depend on the image and the seed only.
    """

    def __init__(
        self,
        radius: float = 0.5,
        num_batches: int = 50,
        num_samples: int = 64,
        *,
        sampling: Sampling = "volume",
        min_pvalue: float = 0.05,
        max_stretch: float = 2.0,
        chunk_size: int = 256,
        seed: int = 0,
    ) -> None:
        if not 0 < radius < float("inf"):
            raise ValueError(f"Expected `radius` to be positive and finite but got {radius}.")
        for name, value in (("num_batches", num_batches), ("num_samples", num_samples), ("chunk_size", chunk_size)):
            if value < 1:
                raise ValueError(f"Expected `{name}` to be at least 1 but got {value}.")
        if sampling not in get_args(Sampling):
            raise ValueError(f"Expected `sampling` to be one of {get_args(Sampling)} but got {sampling!r}.")
        if not max_stretch >= 1:
            raise ValueError(f"Expected `max_stretch` to be at least 1 but got {max_stretch}.")
        self.radius = radius
        self.num_batches = num_batches
        self.num_samples = num_samples
        self.sampling: Sampling = sampling
        self.min_pvalue = min_pvalue
        self.max_stretch = max_stretch
        self.chunk_size = chunk_size
        self.seed = seed

    def _settings(self) -> str:
        return (
            f"ball {self.radius:g} sampled by {self.sampling}, {self.num_batches} x {self.num_samples} points, "
            f"min p {self.min_pvalue:g}, max stretch {self.max_stretch:g}, chunks of {self.chunk_size}, "
            f"seed {self.seed}"
        )

    def points(self, image: Tensor) -> Iterator[Tensor]:
        """Draw all points around one image ``(C, H, W)`` afresh, a chunk at a time."""
        generator = image_generator(image, self.seed)
        remaining = self.num_batches * self.num_samples
        while remaining:
            count = min(self.chunk_size, remaining)
            remaining -= count
            offset = sample_ball(count, image.shape, self.radius, generator, self.sampling)
            yield image + offset.to(image)

    def _extreme(self, norms: Tensor) -> Extreme:
        """Fit the batch maxima of the norms at all points, shape ``(num_batches * num_samples,)``."""
        maxima = norms.view(self.num_batches, self.num_samples).amax(dim=1)
        return fit_maxima(maxima.cpu().numpy(), min_pvalue=self.min_pvalue, max_stretch=self.max_stretch)


class Clever(_Sampler):
    """CLEVER for the vector-valued map image -> latent: ``estimated``.

    The gradient norm of the paper becomes the spectral norm of the Jacobian, at points drawn afresh in the ball
    around the image: maximum per batch, reverse Weibull fit to the maxima, its location is the constant. Each point's
    iteration starts from the singular vector found at its neighbour in the chunk before, and the first chunk's from
    the image's own, so few iterations do. Settings of :class:`_Sampler`, and

    Args:
        num_iterations: Pairs of forward- and reverse-mode products per point. What they leave of the norm is measured
            by ``benchmarks/lipschitz.py``: on small images, where singular vectors turn most, 8 leave less than 1 %.
        num_iterations_center: The most of them at the image itself, from a random start.
        tolerance_center: The image's own iteration stops at this relative residual; only a start comes from it.

    Note:
        It estimates from below: a maximum over samples, of norms approached from below. A network whose gradients
        are masked fools it (Goodfellow 2018). Diagnostics: ``ks_pvalue``, ``fitted`` (1 where the fit counts),
        ``sample_maximum``, and ``residual``, the largest relative residual of the spectral norms.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        radius: float = 0.5,
        num_batches: int = 50,
        num_samples: int = 64,
        *,
        num_iterations: int = 8,
        num_iterations_center: int = 20,
        tolerance_center: float = 0.05,
        sampling: Sampling = "volume",
        min_pvalue: float = 0.05,
        max_stretch: float = 2.0,
        chunk_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(
            radius,
            num_batches,
            num_samples,
            sampling=sampling,
            min_pvalue=min_pvalue,
            max_stretch=max_stretch,
            chunk_size=chunk_size,
            seed=seed,
        )
        for name, value in (
            ("num_iterations", num_iterations),
            ("num_iterations_center", num_iterations_center),
        ):
            if value < 1:
                raise ValueError(f"Expected `{name}` to be at least 1 but got {value}.")
        self.num_iterations = num_iterations
        if not tolerance_center >= 0:
            raise ValueError(f"Expected `tolerance_center` to be at least 0 but got {tolerance_center}.")
        self.num_iterations_center = num_iterations_center
        self.tolerance_center = tolerance_center

    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Estimate each image's constant by itself; see :meth:`LipschitzSource.__call__`."""
        rows: dict[str, list[float]] = {name: [] for name in ("value", "ks_pvalue", "fitted", "sample_maximum")}
        residuals: list[float] = []
        for image in images:
            norms, residual = self.norms(function, image)
            extreme = self._extreme(norms)
            values = (extreme.value, extreme.pvalue, float(extreme.fitted), float(norms.max()))
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            residuals.append(float(residual.max()))
        tensors = {name: images.new_tensor(values, dtype=torch.float64) for name, values in rows.items()}
        constant = tensors.pop("value")
        return LipschitzBound(
            constant=constant,
            ball_radius=torch.full_like(constant, self.radius),
            soundness="estimated",
            source=f"Clever({self._settings()}, {self.num_iterations} iterations)",
            diagnostics=tensors | {"residual": images.new_tensor(residuals, dtype=torch.float64)},
        )

    def norms(self, function: ImageMap, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the Jacobian's spectral norm at every sampled point around one image.

        Args:
            function: Maps ``(M, C, H, W)`` to ``(M, d)``.
            image: Shape ``(C, H, W)``.

        Returns:
            Norms and relative residuals, float64, shape ``(num_batches * num_samples,)``, in the order drawn.
        """
        generator = image_generator(image, self.seed)
        dim = latent_dim(function, image[None])

        def random(count: int) -> Tensor:
            return torch.randn((count, dim), generator=generator, dtype=torch.float64).to(image)

        center = spectral_norms(
            function,
            image[None],
            random(1),
            num_iterations=self.num_iterations_center,
            tolerance=self.tolerance_center,
        )
        start = center.left.expand(self.chunk_size, dim)
        norms, residuals = [], []
        for points in self.points(image):
            count = len(points)
            # A neighbour's vector may be orthogonal to all that the Jacobian produces here; a random part never is.
            mixed = start[:count] + RANDOM_PART * random(count) / dim**0.5
            found = spectral_norms(function, points, mixed, num_iterations=self.num_iterations)
            start = found.left
            norms.append(found.norm)
            residuals.append(found.residual)
        return torch.cat(norms), torch.cat(residuals)


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


class MarginClever(_Sampler):
    """CLEVER as its authors meant it, on each score margin by itself: ``estimated``.

    For every rival the gradient norm of ``score_prediction - score_rival`` is sampled in the ball and fitted; the
    input radius is the smallest ratio of margin to constant. It looks past the latent certificate, so no worst case
    over all latent directions enters, which makes it larger where the ball is about as large as the radius; margins
    are quadratic in the latent, so in a far larger ball their gradients, and with them the constants, grow.
    One forward pass and K - 1 reverse products a point.
    Settings of :class:`_Sampler`.

    Raises:
        ValueError: If a setting is out of range.
    """

    def margins(self, scores: ImageMap, images: Tensor) -> Margins:
        """Estimate the Lipschitz constants of all margins of each image.

        Args:
            scores: Maps images to scores ``(N, K)``.
            images: Shape ``(N, C, H, W)``, values in [0, 1].
        """
        found = [self._margins_of(scores, image) for image in images]
        return Margins(*(torch.stack(column) for column in zip(*found, strict=True)))

    def _margins_of(self, scores: ImageMap, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.no_grad():
            values = scores(image[None])[0].double()
        prediction = values.argmax()
        norms = torch.cat([_margin_gradients(scores, points, int(prediction)) for points in self.points(image)])
        constant, pvalue = torch.zeros_like(values), torch.ones_like(values)
        for rival in range(len(values)):
            if rival != int(prediction):
                extreme = self._extreme(norms[:, rival])
                constant[rival], pvalue[rival] = extreme.value, extreme.pvalue
        return prediction, values[prediction] - values, constant, pvalue

    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Return the constant of the margin that decides each image's radius; ``function`` maps images to scores."""
        margins = self.margins(function, images)
        _, rival = margins.radius(self.radius)
        constant = margins.constant.gather(1, rival[:, None])[:, 0]
        return LipschitzBound(
            constant=constant,
            ball_radius=torch.full_like(constant, self.radius),
            soundness="estimated",
            source=f"MarginClever({self._settings()})",
            diagnostics={"ks_pvalue": margins.pvalue.gather(1, rival[:, None])[:, 0]},
        )

    def certify(self, classifier: Ellips, latents: ImageMap, images: Tensor, method: Method = "exact") -> Certificate:
        """Certify images by margin over constant; ``method`` has no part in it. See :meth:`LipschitzSource.certify`."""
        with checked(latents, images) as inputs:
            margins = self.margins(lambda points: classifier(latents(points)), inputs)
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
            source=f"MarginClever({self._settings()})",
            diagnostics={"ks_pvalue": margins.pvalue.gather(1, rival[:, None])[:, 0]},
        )


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

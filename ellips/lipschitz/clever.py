"""CLEVER (Weng et al. 2018): a sampled estimate of the Lipschitz constant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import get_args

import torch
from torch import Tensor

from ellips.chunks import Chunks, ChunkSize, validate_chunk_size
from ellips.lipschitz.base import ConstantSource
from ellips.lipschitz.extreme_value import Extreme, fit_maxima
from ellips.lipschitz.jacobian import latent_dim, spectral_norms
from ellips.lipschitz.sampling import Sampling, sample_ball
from ellips.randomness import image_generator
from ellips.settings import UNRECORDED
from ellips.types import ImageMap, LipschitzBound
from ellips.validation import at_least, one_of, positive

RANDOM_PART = 0.3
"""About the length of the random vector that is added to a neighbour's singular vector of length 1."""

WAVE = 256
"""Points that are drawn at once, and the most that go through the network at once. Fixed: how a generator's numbers
fall depends on how many are asked for, and each point's iteration starts from that of the point so many before it."""


@dataclass(frozen=True)
class BallSampler:
    """What both estimators share: settings, the sampled points, and the fits.

    Args:
        radius: L2 radius, on [0, 1] pixels, of the ball that is sampled, and on which alone the estimate is claimed.
        num_batches: Batches per image; each gives one maximum to fit. The paper takes 500.
        num_samples: Points per batch. The paper takes 1,024.
        sampling: ``volume`` or ``radial``; see :func:`ellips.lipschitz.sampling.sample_ball`.
        min_pvalue: The fit counts only if its Kolmogorov-Smirnov p-value is at least this; else the sample maximum.
        max_stretch: Nor does it count when it exceeds the sample maximum by more than this factor.
        chunk_size: Points that go through the network at once, at most 256; ``"auto"``: as many as memory takes. It
            changes no estimate.
        seed: Seed; each image's points depend on the image and the seed only.
    """

    radius: float = 0.5
    num_batches: int = 50
    num_samples: int = 64
    _: KW_ONLY
    sampling: Sampling = "volume"
    min_pvalue: float = 0.05
    max_stretch: float = 2.0
    chunk_size: ChunkSize = field(default="auto", repr=False, compare=False, metadata=UNRECORDED)
    seed: int = 0

    def __post_init__(self) -> None:
        positive(radius=self.radius)
        at_least(1, num_batches=self.num_batches, num_samples=self.num_samples)
        validate_chunk_size(self.chunk_size)
        at_least(1, max_stretch=self.max_stretch)
        at_least(0, min_pvalue=self.min_pvalue)
        one_of(get_args(Sampling), sampling=self.sampling)

    def points(self, image: Tensor) -> Iterator[Tensor]:
        """Draw all points around one image ``(C, H, W)`` afresh, a wave at a time."""
        generator = image_generator(image, self.seed)
        remaining = self.num_batches * self.num_samples
        while remaining:
            count = min(WAVE, remaining)
            remaining -= count
            offset = sample_ball(count, image.shape, self.radius, generator, self.sampling)
            yield image + offset.to(image)

    def chunks(self) -> Chunks:
        """Return what sends points through a network."""
        return Chunks(self.chunk_size, WAVE)

    def extreme(self, norms: Tensor) -> Extreme:
        """Fit the batch maxima of the norms at all points, shape ``(num_batches * num_samples,)``."""
        maxima = norms.view(self.num_batches, self.num_samples).amax(dim=1)
        return fit_maxima(maxima.cpu().numpy(), min_pvalue=self.min_pvalue, max_stretch=self.max_stretch)


@dataclass(frozen=True)
class Clever(BallSampler, ConstantSource):
    """CLEVER for the vector-valued map image -> latent: ``estimated``.

    The gradient norm of the paper becomes the spectral norm of the Jacobian, at points drawn afresh in the ball
    around the image: maximum per batch, reverse Weibull fit to the maxima, its location is the constant. Each point's
    iteration starts from the singular vector found at the point 256 before it, and the first 256 points' from the
    image's own, so few iterations do. Settings of :class:`BallSampler`, and

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

    num_iterations: int = field(default=8, kw_only=True)
    num_iterations_center: int = field(default=20, kw_only=True)
    tolerance_center: float = field(default=0.05, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, num_iterations=self.num_iterations, num_iterations_center=self.num_iterations_center)
        at_least(0, tolerance_center=self.tolerance_center)

    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Estimate each image's constant by itself; see :meth:`ConstantSource.__call__`."""
        rows: dict[str, list[float]] = {name: [] for name in ("value", "ks_pvalue", "fitted", "sample_maximum")}
        residuals: list[float] = []
        chunks = self.chunks()
        for image in images:
            norms, residual = self.norms(function, image, chunks)
            extreme = self.extreme(norms)
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
            source=repr(self),
            diagnostics=tensors | {"residual": images.new_tensor(residuals, dtype=torch.float64)},
        )

    def norms(self, function: ImageMap, image: Tensor, chunks: Chunks | None = None) -> tuple[Tensor, Tensor]:
        """Compute the Jacobian's spectral norm at every sampled point around one image.

        Args:
            function: Maps ``(M, C, H, W)`` to ``(M, d)``.
            image: Shape ``(C, H, W)``.
            chunks: What sends points through the network; None: a new one.

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

        def of_chunk(points: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            found = spectral_norms(function, points, starts, num_iterations=self.num_iterations)
            return found.norm, found.residual, found.left

        chunks = chunks or self.chunks()
        start = center.left.expand(WAVE, dim)
        norms, residuals = [], []
        for points in self.points(image):
            count = len(points)
            # A neighbour's vector may be orthogonal to all that the Jacobian produces here; a random part never is.
            mixed = start[:count] + RANDOM_PART * random(count) / dim**0.5
            norm, residual, start = chunks.run(of_chunk, points, mixed)
            norms.append(norm)
            residuals.append(residual)
        return torch.cat(norms), torch.cat(residuals)

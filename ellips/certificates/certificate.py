"""The certificate itself: what is claimed for each point, and everything needed to check it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ellips.types import SPACES, LipschitzBound, Soundness, Space, weakest
from ellips.validation import all_at_least, one_of

Method = Literal["exact", "pairwise", "theorem"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Certificate:
    """Radii within which predictions cannot change, with what proves them.

    All tensors have shape ``(N,)``. For a certificate in latent space, ``(rival, multiplier)`` prove the radius: see
    :func:`ellips.certificates.check`.

    Attributes:
        prediction: Predicted class, int64; −1 where the classifier abstains.
        radius: ℓ2 radius, float64, rounded towards zero; ``inf`` where no change of any size alters the prediction.
        rival: The class whose boundary is nearest, int64.
        margin: score of the prediction minus score of the rival, float64.
        multiplier: Dual multiplier t at which the radius is proven, float64; ``inf`` with an infinite radius.
        method: ``"exact"``, ``"pairwise"`` or ``"theorem"``.
        soundness: What the radius may claim.
        space: ``"latent"`` or ``"input"``: where the radius is measured.
        latent_radius: In input space, the radius before division by the Lipschitz constant.
        lipschitz: In input space, the Lipschitz constant.
        ball_radius: In input space, the radius of the ball on which that constant holds (``inf``: everywhere).
        source: How the Lipschitz constant was obtained.
        diagnostics: Per-point figures of that, by name, such as a fit's p-value; see :attr:`latent_error`.

    Raises:
        ValueError: If the tensors' shapes disagree, a radius is negative or NaN, or one on the image is called
            ``exact`` although its constant is not 1, as it is where there is no encoder.
    """

    prediction: Tensor
    radius: Tensor
    rival: Tensor
    margin: Tensor
    multiplier: Tensor
    method: str
    soundness: Soundness = "exact"
    space: Space = "latent"
    latent_radius: Tensor | None = None
    lipschitz: Tensor | None = None
    ball_radius: Tensor | None = None
    source: str | None = None
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weakest(self.soundness)
        one_of(SPACES, space=self.space)
        for name, value in (*self.tensors().items(), *self.diagnostics.items()):
            if value.shape != self.prediction.shape or value.ndim != 1:
                raise ValueError(
                    f"Expected `{name}` to have shape (N,) = {tuple(self.prediction.shape)} but got "
                    f"{tuple(value.shape)}."
                )
        all_at_least(0, radius=self.radius)
        if self.space == "input" and self.soundness == "exact":
            if self.lipschitz is None or not bool((self.lipschitz == 1).all()):
                raise ValueError(
                    "Expected `soundness` to say what a radius on the image may claim but got 'exact', which is for no "
                    "encoder, a constant of 1."
                )

    def __len__(self) -> int:
        return len(self.prediction)

    def tensors(self) -> dict[str, Tensor]:
        """Return the per-point tensors by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def latent_error(self) -> Tensor | None:
        """How far the latents may be from the true ones, ``(N,)``: what was taken off to get the latent radius.

        The diagnostic of that name; None where nothing was taken off.
        """
        return self.diagnostics.get("latent_error")

    def less(self, uncertainty: Tensor) -> Certificate:
        """Return what is left of the radii where points are known only up to a distance of ``uncertainty``, ``(N,)``.

        Where nothing is left the radius is 0. What is left and the uncertainty, added up and rounded up, are not more
        than there was.

        Raises:
            ValueError: If an uncertainty is negative or NaN.
        """
        all_at_least(0, uncertainty=uncertainty)
        off = uncertainty.to(self.radius)
        left = round_down(round_down(self.radius, 4) - off)  # 0 where more is off than there was
        return replace(self, radius=torch.where(off.isinf(), 0.0, left))

    def to_input(self, bound: LipschitzBound) -> Certificate:
        """Carry a latent certificate to the images: radius ``min(R / L, r)`` ([E26] Theorem 5.1, part 1).

        Args:
            bound: Lipschitz constant L of the map from image to latent, the radius r of the ball around each image on
                which it holds, and what it may claim.

        Returns:
            The certificate in input space; its soundness is the weaker of the two.

        Raises:
            ValueError: If this certificate is in input space already, or the bound is of another length, negative or
                NaN.
        """
        if self.space != "latent":
            raise ValueError("Expected a certificate in latent space but got one in input space already.")
        # In float64: narrower types would round a constant down to 0, or the ball up.
        radius = self.radius.double()
        constant, ball = (x.to(radius) for x in (bound.constant, bound.ball_radius))
        if len(bound) != len(self):
            raise ValueError(f"Expected a Lipschitz constant for each of {len(self)} points but got {len(bound)}.")
        all_at_least(0, constant=constant, ball_radius=ball)
        # L = 0: the latent never moves. inf/inf would be NaN where an unbounded radius meets an unknown constant.
        ratio = torch.where(constant == 0, torch.inf, radius / constant)
        ratio = torch.where(constant.isinf(), torch.zeros_like(ratio), ratio)
        ratio = torch.where(radius == 0, torch.zeros_like(ratio), ratio)
        return replace(
            self,
            radius=torch.minimum(round_down(ratio), ball),
            soundness=weakest(self.soundness, bound.soundness),
            space="input",
            latent_radius=radius,
            lipschitz=constant,
            ball_radius=ball,
            source=bound.source,
            diagnostics={**self.diagnostics, **bound.diagnostics},
        )

    def map(self, fn: Callable[[Tensor], Tensor]) -> Certificate:
        """Return a copy with ``fn`` applied to every per-point tensor, e.g. to select rows."""
        changed: dict[str, Any] = {name: fn(value) for name, value in self.tensors().items()}
        diagnostics = {name: fn(value) for name, value in self.diagnostics.items()}
        return replace(self, **changed, diagnostics=diagnostics)

    def __getitem__(self, rows: slice | Tensor) -> Certificate:
        """Return the certificates of some points."""
        return self.map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> Certificate:
        """Return a copy on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def cpu(self) -> Certificate:
        """Return a copy in the processor's memory."""
        return self.to("cpu")

    def detach(self) -> Certificate:
        """Return a copy without gradients."""
        return self.map(Tensor.detach)

    @staticmethod
    def cat(parts: Sequence[Certificate]) -> Certificate:
        """Join certificates of the same kind, in order.

        Raises:
            ValueError: If there are none, or they differ in method, soundness, space, source or what diagnostics say.
        """
        if not parts:
            raise ValueError("Expected at least one certificate but got none.")
        kinds = {(p.method, p.soundness, p.space, p.source) for p in parts}
        if len(kinds) > 1:
            raise ValueError(f"Expected certificates of one kind (method, soundness, space, source) but got {kinds}.")
        if len({frozenset((*part.tensors(), *part.diagnostics)) for part in parts}) > 1:
            raise ValueError(
                "Expected certificates with the same tensors and diagnostics but some lack what others have."
            )
        joined: dict[str, Any] = {
            name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()
        }
        diagnostics = {name: torch.cat([p.diagnostics[name] for p in parts]) for name in parts[0].diagnostics}
        return replace(parts[0], **joined, diagnostics=diagnostics)


def round_down(x: Tensor, ulps: int = 2) -> Tensor:
    """Return floats lowered by some units in the last place, what rounding may have added, and at least 0.

    Subnormal ones, whose last place is all that they have, become 0.
    """
    lowered = x * (1 - ulps * torch.finfo(x.dtype).eps)
    return torch.where(x < torch.finfo(x.dtype).tiny, torch.zeros_like(x), lowered)

"""From the latent to the image by a Lipschitz constant."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ellips.certificates import Certificate
from ellips.input_certifiers.base import AuditTarget, Chain, InputCertifier, chain_target, short_name
from ellips.lipschitz import Clever, JacobianNorm, KnownConstant
from ellips.lipschitz.base import ConstantSource, evaluation_error
from ellips.types import Soundness


@dataclass(frozen=True)
class ByConstant(InputCertifier):
    """The latent radius over a Lipschitz constant of image → latent: ``min(R / L, r)`` ([E26] Theorem 5.1, part 1).

    Its soundness is the constant's. A certificate that is not ``estimated`` speaks of the network in exact arithmetic,
    since no network that rounds has a constant: how far the latents are from those in float64 is subtracted from the
    latent radius and given as the diagnostic ``latent_error``.

    Args:
        source: Where the constant comes from.
    """

    source: ConstantSource

    def certify(self, chain: Chain, images: Tensor, latents: Tensor, certificate: Certificate) -> Certificate:
        """Divide the latent radii by the constant; see :meth:`InputCertifier.certify`."""
        bound = self.source(chain.latents, images)
        if bound.soundness != "estimated":
            error = evaluation_error(chain.latents, images, latents)
            bound = replace(bound, diagnostics={**bound.diagnostics, "latent_error": error})
            certificate = certificate.less(error)
        return certificate.to_input(bound)

    def target(self, chain: Chain) -> AuditTarget:
        """Name the chain itself, whose latents have the constant."""
        return chain_target(chain, constant=True)

    @property
    def strongest(self) -> Soundness | None:
        """That of the constant, where it is known before it is asked for."""
        if isinstance(self.source, KnownConstant):
            return self.source.soundness
        return "estimated" if isinstance(self.source, Clever | JacobianNorm) else None

    @property
    def source_name(self) -> str:
        """The source's class."""
        return short_name(type(self.source))


def as_certifier(given: InputCertifier | ConstantSource) -> InputCertifier:
    """Return a certifier as it is, and a source of a constant as the certifier that divides by it."""
    return ByConstant(given) if isinstance(given, ConstantSource) else given

"""Ways from the latent, or from the decision, to a radius on the image."""

from ellips.input_certifiers.art_smoothed_decision import ArtSmoothedDecision
from ellips.input_certifiers.base import AuditTarget, Chain, InputCertifier, chain_target, series_of
from ellips.input_certifiers.by_constant import ByConstant, as_certifier
from ellips.input_certifiers.margin_clever import MarginClever
from ellips.input_certifiers.smoothed_decision import SmoothedDecision
from ellips.input_certifiers.smoothed_encoder import SmoothedEncoder

__all__ = [
    "ArtSmoothedDecision",
    "AuditTarget",
    "ByConstant",
    "Chain",
    "InputCertifier",
    "MarginClever",
    "SmoothedDecision",
    "SmoothedEncoder",
    "as_certifier",
    "chain_target",
    "series_of",
]

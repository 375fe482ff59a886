"""The geometry of a mixture, by the structure of its precisions."""

from __future__ import annotations

from ellips.certificates.geometry import FactoredGeometry, Geometry
from ellips.certificates.low_rank import LowRankGeometry
from ellips.gaussians import Mixture
from ellips.gaussians.low_rank import LowRank


def geometry_of(mixture: Mixture) -> Geometry:
    """Return the geometry of a fitted mixture, remembered until that changes."""

    def build() -> Geometry:
        structure = mixture.structure.detached()
        if isinstance(structure, LowRank):
            return LowRankGeometry.of(mixture, structure)
        return FactoredGeometry.of(mixture, structure)

    geometry: Geometry = mixture.derived("geometry", build)
    return geometry

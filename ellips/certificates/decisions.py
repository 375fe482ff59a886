"""Which class has the highest score, in float32 where that tells it: what votes under noise ask a million times."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

from ellips.certificates.geometries import geometry_of
from ellips.certificates.geometry import FactoredGeometry
from ellips.certificates.rounding import gamma, score_error, whitened_error
from ellips.gaussians import Mixture
from ellips.gaussians.structures import TILE_ROWS, class_ranges, class_tiles, square_norm
from ellips.precision import full_precision

_WORTH_DIM = 64  # from here on products take longer than what is done beside them
_BLOCKS = 4  # of a triangle's rows, each of which is multiplied up to its end alone
_LAUNCH_ROWS = 1024
_NARROW = torch.float32
_WIDE = 2.0**-26  # of an error in float32: eight in float64, in which offsets are added here and in `predict`
# Of a whitened point: d products and numbers of factors and points below 2^-126, each taken for 0, lose no more than
# 2^-126 √d (d + ‖x‖ + ‖A‖_F √d), up to d = 2^24. What is too large becomes infinite, and nothing is clear then.
_LOST = 2.0**-80
# What predictions are made by; a mixture that has another of these scores in its own way.
_SCORING = {name: getattr(Mixture, name) for name in "__call__ forward predict validate structure offsets".split()}


def decisions(mixture: Mixture) -> Callable[[Tensor], Tensor]:
    """Return :meth:`ellips.Mixture.predict` of a mixture, faster: the classes are the same.

    Scores of full covariances in many dimensions are computed in float32, from a copy of the factors' lower triangles
    that takes a third of what they take. Where its worst rounding error leaves another class a chance, in float64. A
    mixture that scores in its own way, by a method of its own or by hooks, predicts itself.

    Args:
        mixture: A fitted mixture, which must not change while the map is in use.

    Returns:
        The map from latents ``(N, d)`` to the classes of their highest scores ``(N,)``, without gradients. It raises
        ValueError where latents have another width or are not finite.

    Raises:
        NotFittedError: If no mixture was fitted.
    """
    mixture.validate(mixture.means[:1])
    if _scores_its_own_way(mixture):
        return mixture.predict
    geometry = geometry_of(mixture)
    if not isinstance(geometry, FactoredGeometry) or geometry.diagonal or geometry.dim < _WORTH_DIM:
        return mixture.predict
    narrow = _NarrowScores(geometry, TILE_ROWS if mixture.means.device.type == "cpu" else _LAUNCH_ROWS)

    @torch.no_grad()
    def decide(z: Tensor) -> Tensor:
        z = mixture.validate(z)
        with full_precision(), torch.autocast(z.device.type, enabled=False):
            classes, clear = narrow.decide(z)
            if not bool(clear.all()):
                classes[~clear] = mixture.predict(z[~clear])
        return classes

    return decide


def _scores_its_own_way(mixture: Mixture) -> bool:
    """Whether more than a mixture's stored numbers may have a part in what it predicts."""
    own = any(name in vars(mixture) or getattr(type(mixture), name) is not known for name, known in _SCORING.items())
    hooked = mixture._forward_hooks or mixture._forward_pre_hooks or has_any_global_hook()
    return own or bool(hooked)


class _NarrowScores:
    """Scores in float32 with their rounding errors.

    A_kx − A_kν_k is computed from x and A_k, rounded to float32, and A_kν_k, made in float64 and rounded: two roundings
    of the one, one of the other, d for the product and one for the difference, which is d + 3; the fourth pays for what
    float64 scores err themselves.

    Args:
        geometry: Of full covariances.
        rows: Points at a time: ``TILE_ROWS``, with few classes, stay in a processor's caches; more keep a GPU busy.
    """

    def __init__(self, geometry: FactoredGeometry, rows: int = TILE_ROWS) -> None:
        self._geometry, self._rows = geometry, rows
        classes, dim = geometry.num_classes, geometry.dim
        self._tiles = class_tiles(classes, dim) if rows == TILE_ROWS else class_ranges(classes, rows * dim // _BLOCKS)
        self._parts = [self._cut(k) for k in self._tiles]

    def _cut(self, k: slice) -> list[tuple[Tensor, Tensor, int]]:
        """Return of some rows at a time, in float32: A_k of a range of classes, A_kν_k and the width of these rows."""
        geometry = self._geometry
        factors, dim = geometry.factors[k], geometry.dim
        shift = (factors @ geometry.offsets_from_center[k].unsqueeze(-1)).flatten(1).to(_NARROW)
        ends = [dim * i // _BLOCKS for i in range(_BLOCKS + 1)]
        return [
            (factors[:, start:end, :end].to(_NARROW).reshape(-1, end).mT, shift[:, start:end].reshape(1, -1), end)
            for start, end in itertools.pairwise(ends)
        ]

    def decide(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classes of the highest scores, and where no rounding error can have made them so.

        Args:
            z: Shape ``(N, d)``, float64.

        Returns:
            Shapes ``(N,)`` and ``(N,)``, bool.
        """
        geometry = self._geometry
        x = z - geometry.center
        squares = self._squares(x.to(_NARROW)).double()
        scores = geometry.offsets - squares
        errors = self._errors(squares, x.norm(dim=1, keepdim=True))
        best, classes = (scores - errors).max(1)
        others = (scores + errors).scatter_(1, classes.unsqueeze(1), -torch.inf).amax(1)
        return classes, others < best  # never where one of them is NaN

    def _squares(self, x: Tensor) -> Tensor:
        """‖A_k(x − ν_k)‖², shape ``(N, K)``, in float32."""
        squares = x.new_zeros(len(x), self._geometry.num_classes)
        for k, parts in zip(self._tiles, self._parts, strict=True):
            for stacked, shift, end in parts:
                for rows, part in zip(squares.split(self._rows), x.split(self._rows), strict=True):
                    away = torch.addmm(shift, part[:, :end], stacked, beta=-1)
                    rows[:, k] += square_norm(away.unflatten(1, (k.stop - k.start, -1)))
        return squares

    def _errors(self, squares: Tensor, norms: Tensor) -> Tensor:
        """Bound the errors of scores, shape ``(N, K)``."""
        geometry = self._geometry
        whitened = whitened_error(geometry.dim, geometry.factor_norms, norms, geometry.mean_norms, _NARROW)
        whitened += _LOST * (1 + norms + geometry.factor_norms)
        error = score_error(geometry.dim, squares.sqrt(), whitened, _WIDE * geometry.offset_sizes, _NARROW)
        return (1 + gamma(geometry.dim + 4, _NARROW)) * error + _LOST  # distances are as float32 has rounded them

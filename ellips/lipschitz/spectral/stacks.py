"""Rules of stacks of matrices: each block of numbers by a matrix of its own, as frequencies in block reflectors."""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ellips.lipschitz.capture.graph import Node
from ellips.lipschitz.spectral.norms import stack_norm, times
from ellips.lipschitz.spectral.rules import Effect, Sign, allow, aten, refusal


@allow("bmm.default")
def _blocks(node: Node, self: Any, mat2: Any) -> Effect:
    """Each block's rows by its own constant matrix: blocks and rows are apart, so the steepest matrix counts."""
    if not isinstance(self, Node) or not isinstance(mat2, Tensor):
        raise refusal(node, "not of the image with constant matrices from the right")
    return Effect(
        [self],
        lambda: [stack_norm(mat2)],
        apply=lambda values, sign: values[0] @ sign(mat2.double()).to(values[0].device),
    )


@allow("baddbmm.default")
def _reflected(node: Node, self: Any, batch1: Any, batch2: Any, beta: float, alpha: float) -> Effect:
    """``beta x + alpha (x A) A'`` block by block, with constants A: at most max(|beta|, |beta + alpha ‖A‖²|).

    A A' is symmetric with eigenvalues from 0 to ‖A‖², so the matrix has eigenvalues ``beta + alpha t`` with such t, and
    an absolute value is largest at an end; a bound of ‖A‖ from above does, too. Added up by the triangle inequality a
    reflection, alpha ‖A‖² = -2, would count as 3. Anything else of this operation is refused.
    """
    inner = batch1 if isinstance(batch1, Node) and batch1.op is aten.bmm.default else None
    given = inner.arguments() if inner is not None else {}
    matrices = given.get("mat2")
    if inner is None or given["self"] is not self or not isinstance(matrices, Tensor):
        raise refusal(node, "other than `beta x + alpha (x A) A'` with one x and constant A")
    if not isinstance(batch2, Tensor) or batch2.shape != matrices.mT.shape or not torch.equal(batch2, matrices.mT):
        raise refusal(node, "whose second factor is not the transpose of the first")
    weights = [torch.tensor(float(weight), dtype=torch.float64) for weight in (beta, alpha)]

    def gain() -> float:
        norm = stack_norm(matrices)
        added = times(abs(alpha), times(norm, norm))
        # What is left where they cancel has lost digits: an addend for the rounding of both.
        return max(abs(beta), abs(beta + math.copysign(added, alpha))) + 1e-12 * (abs(beta) + added)

    def apply(values: list[Tensor], sign: Sign) -> Tensor:
        x = values[0]
        keep, add = (sign(weight).to(x.device) for weight in weights)
        factor = sign(matrices.double()).to(x.device)
        return keep * x + add * (sign.after(x @ factor) @ factor.mT)

    return Effect([self], lambda: [gain()], apply=apply)

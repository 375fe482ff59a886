"""Solve certificates as semidefinite programs: ``python -m tests.ellips.certificates.make_references``.

Writes ``tests/data/certificates_conic.json``. The route shares nothing with the project's solvers: for every rival,
the Lagrangian dual of min ‖δ‖² s.t. δᵀWδ + 2bᵀδ + m ≤ 0 is the linear matrix inequality

    max γ   s.t.   [I + tW, t b; t bᵀ, t m − γ] ⪰ 0,   t ≥ 0,

solved by a conic solver (CVXPY with Clarabel, in the ``dev`` extra). Mixtures are drawn from seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cvxpy
import numpy as np
import torch

from ellips import Ellips
from tests.ellips.mixtures import KINDS, random_mixture, random_points

FILE = Path(__file__).parents[2] / "data" / "certificates_conic.json"
SHAPES = ((3, 8), (4, 24), (3, 48), (3, 64))
POINTS = 3


def squared_distance(w: np.ndarray, b: np.ndarray, m: float) -> float:
    """Optimal value of the dual for one rival; ``inf`` if it is unbounded."""
    d = len(b)
    t, gamma = cvxpy.Variable(nonneg=True), cvxpy.Variable()
    column = cvxpy.reshape(t * b, (d, 1), order="C")
    matrix = cvxpy.bmat([[np.eye(d) + t * w, column], [column.T, cvxpy.reshape(t * m - gamma, (1, 1), order="C")]])
    problem = cvxpy.Problem(cvxpy.Maximize(gamma), [matrix >> 0])
    problem.solve(solver=cvxpy.CLARABEL)
    if problem.status in ("unbounded", "unbounded_inaccurate"):
        return float("inf")
    if problem.status != "optimal":
        raise RuntimeError(f"The conic solver ended with {problem.status}.")
    return float(problem.value)


def exact_radius(ellips: Ellips, z: torch.Tensor) -> float:
    """Distance of one latent to the decision boundary."""
    covariances = ellips.covariances.numpy()
    precisions = [np.linalg.inv(c) for c in covariances]
    away = [z.numpy() - mean for mean in ellips.means.numpy()]
    scores = [
        -a @ p @ a - np.linalg.slogdet(c)[1] + 2 * np.log(prior)
        for a, p, c, prior in zip(away, precisions, covariances, ellips.priors.numpy(), strict=True)
    ]
    best = int(np.argmax(scores))
    squares = [
        squared_distance(
            precisions[i] - precisions[best],
            precisions[i] @ away[i] - precisions[best] @ away[best],
            scores[best] - scores[i],
        )
        for i in range(len(scores))
        if i != best
    ]
    return float(np.sqrt(max(min(squares), 0.0)))


def main() -> None:
    """Solve all cases and write the file."""
    cases: list[dict[str, Any]] = []
    for kind in KINDS:
        for classes, dim in SHAPES:
            case = {"kind": kind, "classes": classes, "dim": dim, "seed": dim, "spread": 0.5}
            ellips = random_mixture(**case)
            z = random_points(ellips, POINTS, case["seed"])
            radii = [exact_radius(ellips, point) for point in z]
            # The sum tells whether another version of torch draws another mixture from the seed.
            cases.append({**case, "sum": float(ellips.means.sum() + z.sum()), "exact": radii})
            print(cases[-1], flush=True)
    FILE.write_text(json.dumps({"cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

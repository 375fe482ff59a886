"""Many claims, each confirmed as it is or lowered: ``python -m tests.soundness.claims --count 100000 --json FILE``.

Certificates of all generators and methods are confirmed; a sample of them is compared with the true distance: to 120
digits in few dimensions, enclosed by ball arithmetic in more. The exit code is 1 if one confirmed radius is larger than
that, or is not proven on its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mpmath import mpf

from ellips import Ellips
from ellips.certificates import METHODS, Certificate, check, confirm
from tests.soundness.enclosures import BITS, enclosed_distance
from tests.soundness.generators import GENERATORS, make_case
from tests.soundness.oracle import flint, nearest_distance, working_precision

# Claims per mixture; mixtures that are dear to make serve more points.
POINTS = {"wide": 100, "many_classes": 100, "broad": 50, "vast": 20}
SHARES = {"wide": 0.5, "many_classes": 0.3, "broad": 0.08, "vast": 0.015}  # of an even share of the claims
_FEWEST = 10  # claims of a generator: its mixtures may be dear to make
_MOST_WORK = 4e7  # K d³, of a distance that is enclosed by ball arithmetic


def run(count: int, every: int = 50, first_seed: int = 0) -> dict[str, Any]:
    """Confirm ``count`` claims, and compare about every so many with the truth.

    Args:
        count: How many claims.
        every: One in so many is compared, where dimension and number of classes allow.
        first_seed: Seeds count up from here.
    """
    weight = sum(SHARES.get(name, 1.0) for name in GENERATORS)
    counts = {name: round(count * SHARES.get(name, 1.0) / weight) for name in GENERATORS}
    groups = {}
    for name in (name for name, n in counts.items() if n >= _FEWEST):
        groups[name] = _group(name, counts[name], every, first_seed)
        print(name, json.dumps(groups[name]), file=sys.stderr, flush=True)  # for those who wait
    total: Counter[str] = Counter()
    for group in groups.values():
        total.update({key: value for key, value in group.items() if isinstance(value, int)})
    return {
        "total": dict(total),
        "share_as_they_are": total["as_they_are"] / total["claims"],
        "share_lowered": total["lowered"] / total["claims"],
        "share_unconfirmed": total["unconfirmed"] / total["claims"],
        "most_lowered": max(group["most_lowered"] for group in groups.values()),
        "groups": groups,
    }


def _group(name: str, count: int, every: int, seed: int) -> dict[str, Any]:
    found: Counter[str] = Counter(claims=0, as_they_are=0, lowered=0, corrected=0, unconfirmed=0, infinite=0, zero=0)
    found.update(compared=0, compared_in_more_than_8_dimensions=0, above_the_truth=0, not_proven_again=0)
    most, gaps, start = 0.0, [], time.perf_counter()
    while found["claims"] < count:
        points = min(POINTS.get(name, 20), count - found["claims"])
        ellips, z = make_case(name, seed, points)
        method = "exact" if seed % 5 else METHODS[(seed // 5) % 3]
        seed += 1
        confirmed = confirm(ellips, z, ellips.certify(z, method))
        lowered, proven = confirmed.diagnostics["lowered"], confirmed.diagnostics["confirmed"] == 1
        corrected = confirmed.diagnostics["corrected"] == 1
        found.update(
            claims=points,
            as_they_are=int(((lowered == 0) & proven & ~corrected).sum()),
            lowered=int(((lowered > 0) & proven & ~corrected).sum()),
            corrected=int((corrected & proven).sum()),
            unconfirmed=int((~proven).sum()),
            infinite=int(confirmed.radius.isinf().sum()),
            zero=int((confirmed.radius == 0).sum()),
            not_proven_again=int((check(ellips, z, confirmed) != proven).sum()),
        )
        most = max(most, float(lowered.masked_fill(corrected, 0.0).max()))
        for i in range(seed % every, points, every):
            gap = _gap(ellips, z[i], confirmed[torch.tensor([i])])
            if gap is not None:
                found.update(compared=1, above_the_truth=int(gap < 0))
                found.update(compared_in_more_than_8_dimensions=int(ellips.dim > 8))
                gaps.append(gap)
    gaps.sort()
    seconds = time.perf_counter() - start
    middle = gaps[len(gaps) // 2] if gaps else None
    return {**found, "most_lowered": most, "median_below_truth": middle, "seconds": round(seconds, 1)}


def _gap(ellips: Ellips, z: torch.Tensor, certificate: Certificate) -> float | None:
    """How far a radius is below the truth, relative to it; None where that would take too long or both are infinite."""
    if float(certificate.diagnostics["confirmed"]) == 0 or ellips.num_classes * ellips.dim**3 > _MOST_WORK:
        return None
    if ellips.dim > 8 or ellips.num_classes > 10:
        found = enclosed_distance(ellips, z, int(certificate.prediction))
        if found is None:
            return None
        with working_precision(BITS):
            gap = found.low - flint.arb(float(certificate.radius))
            return float(gap / found.low) if gap >= 0 else -1.0
    truth, radius = nearest_distance(ellips, z, int(certificate.prediction)), mpf(float(certificate.radius))
    if truth == mpf("inf"):
        return None
    return float((truth - radius) / truth) if truth else float(-radius)


def main(args: list[str] | None = None) -> int:
    """Run, print and perhaps write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=50, help="compare one in so many with the truth")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args(args)
    text = json.dumps(found := run(options.count, options.every, options.first_seed), indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(found["total"]["above_the_truth"] + found["total"]["not_proven_again"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())

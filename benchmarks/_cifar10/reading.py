"""Where the method wins and where it does not: sentences whose every word depends on the facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._cifar10 import votes
from benchmarks._cifar10.data import ADVERSARIAL, LIPSCHITZ
from ellips.metrics.functional import clopper_pearson

Facts = Mapping[str, Any]


def reading(facts: Facts, settings: Mapping[str, Any]) -> str:
    """Return the reading, as a list."""
    found = [_latent(facts), _objectives(facts), _proven(facts), _votes(facts), _stopping(facts), _denoised(facts)]
    found += [_estimates(facts), _gaussian(facts), _choice(facts)]
    return "\n".join(f"- {text}" for text in found)


def better(first: float, second: float, tolerance: float = 0.0) -> str:
    """Return ``above``, ``below`` or ``equal to``."""
    if abs(first - second) <= tolerance:
        return "equal to"
    return "above" if first > second else "below"


def wins(ours: Facts, theirs: Facts) -> tuple[int, int, int]:
    """Return at how many radii, clean accuracy aside, we are above, equal and below."""
    kinds = [
        better(ours["certified_accuracy"][r], theirs["certified_accuracy"][r])
        for r in list(ours["certified_accuracy"])[1:]
    ]
    return kinds.count("above"), kinds.count("equal to"), kinds.count("below")


def _clean(row: Facts) -> float:
    value: float = row["certified_accuracy"]["0"]
    return value


def _latent(facts: Facts) -> str:
    rows = facts["latent"]["rows"]
    exact, theorem, linear = rows["full_exact"], rows["full_theorem"], rows["linear_refitted"]
    own, accurate = rows["linear"], rows["full_accurate_exact"]
    return (
        f"**Certificates.** On the same Gaussians the exact mean latent radius is "
        f"{_over(exact['mean_radius'], theorem['mean_radius']):.2f} times Theorem 4.1's, "
        f"{_over(rows['full_pairwise']['mean_radius'], theorem['mean_radius']):.2f} times for `pairwise`. With chosen "
        f"regularisation {_clean(exact):.1f} % are right, which is {better(_clean(exact), _clean(linear))} the linear "
        f"softmax on the same features ({_clean(linear):.1f} % refitted, {_clean(own):.1f} % as the encoder was "
        f"trained); the mean radius is {_over(exact['mean_radius'], linear['mean_radius']):.2f} and "
        f"{_over(exact['mean_radius'], own['mean_radius']):.2f} times theirs. The default choice gives up to a "
        f"standard error of accuracy for radius; chosen for accuracy alone, {_clean(accurate):.1f} % are right."
    )


def _objectives(facts: Facts) -> str:
    ours, paper = facts["objectives"]["certified_radius"], facts["objectives"]["paper"]
    above, equal, below = wins(ours, paper)
    return (
        "**Objectives.** In short trainings of a projector the certified-radius loss is above the paper's objective at "
        f"{above} of {above + equal + below} radii, equal at {equal} and below at {below}; clean accuracy "
        f"{_clean(ours):.1f} % against {_clean(paper):.1f} %."
    )


def _proven(facts: Facts) -> str:
    found = facts["deterministic"]
    margin = found["margin"]["certified_accuracy"]
    at = {limit: row["certified_accuracy"][limit] for limit, row in found["chosen_for"].items()}
    lists = {kind: [r for r in at if better(at[r], margin[r]) == kind] for kind in ("above", "equal to", "below")}
    words = [f"{kind} it at {', '.join(radii)}" for kind, radii in lists.items() if radii]
    pairs = ", ".join(f"{at[r]:.1f} against {margin[r]:.1f} at {r}" for r in at)
    clean = min(_clean(row) for row in found["chosen_for"].values())
    return (
        "**Proven on the image.** Chosen for each radius on validation images, ELLIPS on the 1-Lipschitz network "
        f"against its own margin is {'; '.join(words)} ({pairs}). Clean accuracy is {clean:.1f} % at the lowest, "
        f"against {_clean(found['margin']):.1f} %. No new training is needed: regularisation moves the trade-off "
        "afterwards."
    )


def _votes(facts: Facts) -> str:
    few, many = f"n = {votes.FEW:,}", f"n = {votes.MANY:,}"
    found = facts["probabilistic"]["all"]
    ours, theirs = found[f"ellips_{votes.FEW}"], found[f"linear_{votes.FEW}"]
    above, equal, below = wins(ours, theirs)
    encoder = found[f"encoder_{votes.FEW}"]["mean_radius"]
    apart, wide = _largest_difference(ours, theirs)
    verdict = ": do not choose it" if encoder < ours["mean_radius"] else ""
    several = facts["probabilistic"]["several"]
    more = _over(several[f"ellips_{votes.MANY}"]["mean_radius"], several[f"linear_{votes.MANY}"]["mean_radius"])
    return (
        f"**Votes.** Against Cohen et al. on the same network's linear head and the same noise ({few}), "
        f"ELLIPS votes are above at {above} of {above + equal + below} radii, equal at {equal} and below at {below}. "
        f"They differ by at most {apart:.1f} points, where the 95 % interval of a share of {ours['images']} images is "
        f"{wide:.0f} points wide; mean radius "
        f"{ours['mean_radius']:.3f} against {theirs['mean_radius']:.3f} (at {many}: {more:.2f} times). "
        f"Smoothing the encoder instead gives {encoder:.3f}{verdict}."
    )


def _largest_difference(ours: Facts, theirs: Facts) -> tuple[float, float]:
    """Return the largest difference of certified accuracies, and how wide the interval of ours is there, in points."""
    mine, others = (row["certified_accuracy"] for row in (ours, theirs))
    radius = max(list(mine)[1:], key=lambda r: abs(mine[r] - others[r]))
    lower, upper = clopper_pearson(round(mine[radius] * ours["images"] / 100), ours["images"])
    return abs(mine[radius] - others[radius]), 100 * float(upper - lower)


def _stopping(facts: Facts) -> str:
    found = facts["probabilistic"]["stopped"]
    early, few = found["ellips_early"], found[f"ellips_{votes.FEW}"]
    return (
        f"**Early stopping.** With up to {votes.MANY:,} copies it takes {early['passes']:,.0f} an image on average; "
        f"the mean radius is {early['mean_radius']:.3f}, against {few['mean_radius']:.3f} with {few['passes']:,.0f} "
        "for every image."
    )


def _denoised(facts: Facts) -> str:
    rows = facts["probabilistic"]["denoised"]["rows"]
    ours, theirs, noise = (rows[name]["mean_radius"] for name in ("ellips_denoised", "linear_denoised", "ellips_noise"))
    where = "Train with noise where you can" if noise > ours else "Here that costs nothing"
    return (
        f"**A denoiser in front** of a network that never saw noise gives votes a mean radius of {ours:.3f} "
        f"({theirs:.3f} for its own linear head), {_over(ours, noise):.2f} times that of the network which was trained "
        f"with noise. {where}; a frozen encoder that never saw noise gets its radii so."
    )


def _estimates(facts: Facts) -> str:
    b, c = facts["estimated"][ADVERSARIAL], facts["estimated"][LIPSCHITZ]
    return (
        f"**Estimates.** On the adversarially trained network attacks break {b['jacobian']['broken']} of "
        f"{b['jacobian']['attacked']} radii by Jacobian norms and {b['clever']['broken']} of "
        f"{b['clever']['attacked']} by CLEVER; on the 1-Lipschitz network, whose constant is at most 1, "
        f"{c['jacobian']['broken']} of {c['jacobian']['attacked']} and {c['clever']['broken']} of "
        f"{c['clever']['attacked']}: there CLEVER says {c['clever']['constant_median']:.2f} (median). Radii by "
        f"CLEVER are {b['clever']['radius_over_nearest']:.2f} and {c['clever']['radius_over_nearest']:.2f} times "
        "(medians) as far as the nearest adversarial image that was found: what is known of them is that these "
        "attacks, which are short, did not refute more. That is no certificate."
    )


def _gaussian(facts: Facts) -> str:
    found = facts["theory"]
    bound = found["degradation"]
    tail = ""
    if bound["refused"] is None:
        largest = max(bound["bound"].values())
        tail = (
            " The degradation bound is vacuous here."
            if largest <= 0
            else f" The degradation bound leaves at most {largest:.1f} %."
        )
    return (
        f"**Gaussianity.** {found['passed']} of {len(found['mardia'])} classes pass Mardia's tests on the test split."
        f"{tail} The certificate of an image does not depend on it."
    )


def _choice(facts: Facts) -> str:
    proven = facts["deterministic"]
    voted = facts["probabilistic"]["all"][f"ellips_{votes.FEW}"]["certified_accuracy"]
    limit = "0.25"
    best = max(row["certified_accuracy"][limit] for row in proven["chosen_for"].values())
    cost = facts["costs"]["median"]
    votes_cost, proof_cost = cost[f"votes_ellips_{votes.FEW}"], 1000 * cost["deterministic"]
    for_votes = "votes where accuracy counts most and seconds do not" if voted[limit] > best else "votes nowhere here"
    return (
        f"**What to choose.** At {limit} votes certify {voted[limit]:.1f} % with probability ({votes_cost:.2f} s an "
        f"image, n = {votes.FEW:,}), the 1-Lipschitz network at most {best:.1f} % with proof ({proof_cost:.0f} ms). "
        f"Choose the proof where chance may have no part, or where an answer has to come at once; {for_votes}; "
        "estimates for ranking models, never as a promise."
    )


def _over(first: float, second: float) -> float:
    return first / second if second else float("inf")

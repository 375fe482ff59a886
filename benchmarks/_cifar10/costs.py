"""Seconds and memory of every way to a certificate, measured in one process, one after the other in every round."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks._cifar10 import votes
from benchmarks._cifar10.data import ADVERSARIAL, Setting
from benchmarks._cifar10.deterministic import RADII, Proven
from benchmarks._cifar10.estimates import Estimated
from benchmarks._cifar10.store import Store
from benchmarks._cifar10.votes import ALPHA, SIGMA, STOPPING, Smoothed
from benchmarks._common import interleaved_seconds, median_ratio
from benchmarks._scale import forget_peak, peak
from ellips.certificates import METHODS, Method
from ellips.input_certifiers import Chain, SmoothedDecision, SmoothedEncoder

ONCE = 100  # closed forms of one image in each timed call


def costs(setting: Setting, store: Store) -> dict[str, Any]:
    """Time every certificate on one image, given what it starts from, and name the speed-ups.

    Returns:
        ``seconds`` by name, one entry per round; ``gigabytes`` by name; ``ratios``.
    """
    methods = _methods(setting, store)
    cheap = {name: run for name, run in methods.items() if name.startswith("latent")}
    memory = {}
    for name, run in methods.items():  # the warm-up, too
        forget_peak()
        run()
        memory[name] = peak()
    times = interleaved_seconds(methods, setting.sizes.rounds, warmup=0)
    seconds = {name: [t / ONCE if name in cheap else t for t in found] for name, found in times.items()}
    slow = seconds[f"votes_linear_{votes.MANY}"]
    ratios = {
        f"certify_speedup_over_smoothing_{votes.MANY}": median_ratio(slow, seconds["latent_pairwise"]),
        f"certify_speedup_over_smoothing_{votes.MANY}_theorem": median_ratio(slow, seconds["latent_theorem"]),
        f"certify_speedup_over_smoothing_{votes.MANY}_exact": median_ratio(slow, seconds["latent_exact"]),
        "with_encoder_and_rounding_over_smoothing": median_ratio(slow, seconds["deterministic"]),
        "early_over_fixed": median_ratio(slow, seconds["votes_early"]),
    }
    medians = {name: median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "median": medians, "gigabytes": memory, "ratios": ratios}


def _methods(setting: Setting, store: Store) -> dict[str, Callable[[], object]]:
    proven, smoothed, estimated = (
        Proven(setting, store),
        Smoothed(setting, store),
        Estimated(setting, store, ADVERSARIAL),
    )
    image = setting.shown[0][:1]
    classifier, chain = proven.classifier(RADII[0]), smoothed.classifier.chain
    latent = classifier.latents(image).detach()
    ellips = classifier.head.ellips
    constant = proven.certifier.source(classifier.encoder, image)
    ball = SmoothedEncoder(SIGMA, votes.FEW, ALPHA, norm_bound=smoothed.ball)

    def closed(method: Method) -> Callable[[], object]:
        return lambda: [ellips.certify(latent, method).to_input(constant) for _ in range(ONCE)]

    def by_votes(certifier: SmoothedDecision, of: Chain = chain) -> Callable[[], object]:
        return lambda: certifier.vote(of, image)

    return {
        **{f"latent_{method}": closed(method) for method in METHODS},
        "deterministic": lambda: classifier.certify(image, proven.certifier),
        **{
            f"votes_linear_{n}": by_votes(smoothed.decision(n, linear=True, stopping="fixed"), smoothed.linear_chain)
            for n in (votes.FEW, votes.MANY)
        },
        **{f"votes_art_{n}": by_votes(smoothed.art(n), smoothed.linear_chain) for n in (votes.FEW, votes.MANY)},
        **{f"votes_ellips_{n}": by_votes(smoothed.decision(n, stopping="fixed")) for n in (votes.FEW, votes.MANY)},
        "votes_early": by_votes(smoothed.decision(votes.MANY, radii=STOPPING)),
        f"smoothed_encoder_{votes.FEW}": lambda: ball.smooth(chain.latents, image),
        **{
            name: lambda source=source: estimated.classifier.certify(image, source)
            for name, (source, _) in estimated.sources().items()
        },
    }

"""The page: tables and words made of the facts of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks._cifar10 import votes
from benchmarks._cifar10.data import ADVERSARIAL, CLEAN, DENOISER, LIPSCHITZ, NOISY, SIGMA
from benchmarks._cifar10.estimates import HALVINGS, REACH
from benchmarks._cifar10.reading import reading
from benchmarks._cifar10.votes import ALPHA, STOPPING

Facts = Mapping[str, Any]

LATENT_NAMES = {
    "linear": "linear softmax of the encoder's own training",
    "linear_refitted": "linear softmax, refitted to clean features",
    "full_theorem": "ELLIPS, `theorem`",
    "full_pairwise": "ELLIPS, `pairwise`",
    "full_exact": "ELLIPS, `exact`",
    "full_accurate_exact": "ELLIPS, `exact`, chosen for accuracy alone",
    "full_unregularized_exact": "ELLIPS, `exact`, no regularisation",
    "diagonal_exact": "ELLIPS, `exact`, diagonal",
    "low_rank_exact": "ELLIPS, `exact`, low rank (16)",
}
_VOTED = ("all", "several", "stopped")
VOTE_NAMES = {
    "linear": "Cohen et al. on the linear head",
    "ellips": "ELLIPS votes",
    "encoder": "ELLIPS, encoder smoothed (Bernstein)",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _accuracies(row: Facts) -> list[str]:
    return [f"{value:.1f}" for value in row["certified_accuracy"].values()]


def _mean(row: Facts) -> str:
    return f"{row['mean_radius']:.4f}"


def _radii(row: Facts) -> list[str]:
    radii = list(row["certified_accuracy"])
    return ["clean", *radii[1:]]


def page(facts: Facts, settings: Mapping[str, Any], machine: Mapping[str, Any], stem: str) -> str:
    """Return the page.

    Args:
        facts: Of :func:`benchmarks._cifar10.facts.facts_of`.
        settings: Of the run, with the command.
        machine: Of :func:`benchmarks._common.machine`.
        stem: Name of the page's files without suffix: its figures lie beside it.
    """
    sections = [
        f"# Results on CIFAR-10\n\n{_opening(settings)}",
        f"## In short\n\n{reading(facts, settings)}",
        f"![Certified accuracy over the radius on the image: proven, with probability, estimated]({stem}.png)",
        _latent(facts, settings, stem),
        _deterministic(facts, settings),
        _probabilistic(facts, settings),
        _estimated(facts, settings),
        _costs(facts, settings),
        _theory(facts, stem),
        _made_with(settings, machine),
    ]
    return "\n\n".join(sections) + "\n"


def _opening(settings: Mapping[str, Any]) -> str:
    sizes, counts = settings["sizes"], settings["data"]["counts"]
    return (
        f"Written by the command below from what it measured, and from nothing else: tables, figures and the reading.\n"
        f"CIFAR-10 as JPEG files, four encoders that ship with the project, {sizes['images']} of the "
        f"{counts['test']:,} test images in every table unless it says otherwise (one of every "
        f"{max(1, counts['test'] // sizes['images'])}). Everything that is chosen is chosen on images, at most "
        f"{sizes['held_out']:,}, set apart from the training split. Certified accuracies in %; radii on the image are "
        f"ℓ2 on [0, 1] pixels at 32×32.\n\n```text\n{settings['command']}\n```\n\n"
        + table(
            ("", "encoder", "trained", "carries claims that are"),
            (
                ("a", f"`{NOISY}`", f"with Gaussian noise, σ = {SIGMA:g}; runs in bfloat16", "`probabilistic`"),
                ("b", f"`{ADVERSARIAL}`", "adversarially, ℓ2, ε = 0.5; float32", "`estimated`"),
                ("c", f"`{LIPSCHITZ}`", "1-Lipschitz (LipNeXt); float32", "`deterministic`"),
                ("d", f"`{CLEAN}`", "on clean images; behind a denoiser, in bfloat16", "`probabilistic`"),
            ),
        )
    )


def _latent(facts: Facts, settings: Mapping[str, Any], stem: str) -> str:
    rows = facts["latent"]["rows"]
    first = next(iter(rows.values()))
    lines = [
        (name, *_accuracies(rows[key]), f"{rows[key]['mean_radius']:.4f}", _plain(rows[key]["regularization"]))
        for key, name in LATENT_NAMES.items()
        if key in rows
    ]
    objectives = [
        (name, *_accuracies(row), f"{row['mean_radius']:.4f}", _plain(row["regularization"]))
        for key, name in (("paper", "the paper's: MCR² and isotropy"), ("certified_radius", "certified radius"))
        for row in (facts["objectives"][key],)
    ]
    head = ("", *_radii(first), "mean radius", "pooling, shrinkage")
    return (
        f"## In latent space: `exact`\n\nOn the {facts['latent']['dim']} features of encoder b. Radii are in units of "
        "the root of the features' total variance, so that they do not depend on the features' scale.\n\n"
        f"{table(head, lines)}\n\n![Certified accuracy over the latent radius]({stem}_latent.svg)\n\n"
        "The same projector (32 dimensions, unit ball) trained on the features by two objectives, "
        f"{settings['sizes']['epochs']} epochs each, radii in the unit of each one's own latents:\n\n"
        f"{table(head, objectives)}"
    )


def _plain(regularization: str | None) -> str:
    if regularization is None:
        return "–"
    return (
        regularization.removeprefix("Regularization(")
        .removesuffix(")")
        .replace("pooling=", "")
        .replace("shrinkage=", "")
    )


def _deterministic(facts: Facts, settings: Mapping[str, Any]) -> str:
    found, attacks = facts["deterministic"], facts["attacks"]["deterministic"]
    head = ("", *_radii(found["margin"]), "mean radius", "pooling, shrinkage")
    whole = found["margin_whole_split"]
    rows = {"the network's own pairwise margin": found["margin"]}
    rows |= {f"ELLIPS `exact`, chosen for {limit}": row for limit, row in found["chosen_for"].items()}
    rows[f"own margin, all {whole['images']:,} images"] = whole
    lines = [(name, *_accuracies(row), _mean(row), _plain(row.get("regularization"))) for name, row in rows.items()]
    return (
        f"## On the image, proven: `deterministic`\n\nEncoder c; its constant, proven from the stored weights, is "
        f"{found['constant']:.10f}. Each line of ELLIPS is one classifier, its regularisation chosen for one radius; "
        "rounding of the network is measured in float64 and taken off.\n\n"
        f"{table(head, lines)}\n\n"
        f"**Attacked.** The claim of each of {attacks['attacked']:,} test images, right or wrong, at its whole radius "
        f"(classifier chosen for 36/255), by PGD ({settings['sizes']['steps_deterministic']} steps, a random start, "
        f"untargeted and at the nearest rival): {attacks['attacked']:,} pairs of image and radius, "
        f"**{attacks['violations']} violations**."
    )


def _votes_table(found: Facts, order: Iterable[tuple[str, str]]) -> str:
    first = next(iter(found.values()))
    head = ("", *_radii(first), "mean radius", "noisy copies an image")
    lines = [
        (label, *_accuracies(found[key]), f"{found[key]['mean_radius']:.3f}", f"{found[key]['passes']:,.0f}")
        for key, label in order
        if key in found
    ]
    return table(head, lines)


def _probabilistic(facts: Facts, settings: Mapping[str, Any]) -> str:
    n_few, n_many = f"n = {votes.FEW:,}", f"n = {votes.MANY:,}"
    found, sizes = facts["probabilistic"], settings["sizes"]
    attacks, art = facts["attacks"]["probabilistic"], found["art"]
    few = [(f"{key}_{votes.FEW}", f"{name}, {n_few}") for key, name in VOTE_NAMES.items()]
    many = few + [(f"{key}_{votes.MANY}", f"{name}, {n_many}") for key, name in VOTE_NAMES.items()]
    stopped = [(f"{key}_{votes.FEW}", f"{VOTE_NAMES[key]}, {n_few}") for key in ("linear", "ellips")]
    stopped.append(("ellips_early", f"ELLIPS votes, early stopping, n ≤ {votes.MANY:,}"))
    counts = {
        kind: f"{found[kind][f'ellips_{votes.FEW}']['images']} of the {sizes['images']} images" for kind in _VOTED
    }
    return (
        f"## On the image, by votes: `probabilistic`\n\nEncoder a, σ = {SIGMA:g}, α = {ALPHA:g} for each image, the "
        "same noise for all lines. Gaussians are on noisy features; which features, and their regularisation, is "
        f"chosen by votes on validation images: {found['features']}; {_plain(found['regularization'])} (pooling, "
        "shrinkage). The linear head has the features that it was trained on. "
        f"{counts['all'].capitalize()}.\n\n"
        f"{_votes_table(found['all'], few)}\n\n"
        f"More copies cost {votes.MANY // votes.FEW} times as much; {counts['several']}.\n\n"
        f"{_votes_table(found['several'], many)}\n\n"
        f"Early stopping decides the radii {', '.join(f'{r:g}' for r in STOPPING)} and then ends; {counts['stopped']}."
        f"\n\n{_votes_table(found['stopped'], stopped)}\n\n"
        f"The Adversarial Robustness Toolbox, on the same noise and linear head, {n_few}: the same prediction on "
        f"{art['same']} of {art['images']} images, radii that differ by at most {art['largest_difference']:.1g}.\n\n"
        f"**Attacked.** {attacks['attacked']} claims of ELLIPS votes ({n_few}), judged by a majority of fresh "
        f"votes: **{attacks['violations']} violations**; at most a share of α = {ALPHA:g} of the claims may fail.\n\n"
        f"{_denoised(found['denoised'], settings)}"
    )


def _denoised(found: Facts, settings: Mapping[str, Any]) -> str:
    order = [
        (f"{key}_{of}", f"{where}: {VOTE_NAMES[key]}")
        for of, where in (("noise", "a"), ("denoised", "d, behind the denoiser"))
        for key in VOTE_NAMES
    ]
    count = found["rows"]["ellips_denoised"]["images"]
    return (
        "### Behind a denoiser\n\nEncoder d never saw noise; `ellips.encoders.Denoised` puts a small residual denoiser "
        f"(`{DENOISER}`) in front of it. The Gaussians are chosen as before: {found['features']}; "
        f"{_plain(found['regularization'])} (pooling, shrinkage). {count} of the {settings['sizes']['images']} images, "
        f"n = {votes.FEW:,}, beside the network that was trained with noise.\n\n{_votes_table(found['rows'], order)}"
    )


def _estimated(facts: Facts, settings: Mapping[str, Any]) -> str:
    sizes = settings["sizes"]
    head: tuple[str, ...] = ()
    accuracy, numbers = [], []
    for name, letter in ((ADVERSARIAL, "b"), (LIPSCHITZ, "c")):
        found = facts["estimated"][name]
        for source, label in (("jacobian", "Jacobian norm"), ("clever", "CLEVER")):
            row = found[source]
            head = ("", "images", *_radii(row))
            accuracy.append((f"{letter}, {label}", f"{row['images']}", *_accuracies(row)))
            numbers.append(
                (
                    f"{letter}, {label}",
                    f"{row['constant_median']:.3f}, {row['constant_largest']:.3f}",
                    f"{facts['deterministic']['constant']:.3f}" if name == LIPSCHITZ else "not known",
                    f"{row['broken']} of {row['attacked']}",
                    f"{found['nearest_median']:.3f} ({found['nearest_found']} of {found['nearest_images']})",
                    f"{row['radius_over_nearest']:.2f}",
                )
            )
    columns = (
        "",
        "constant: median, largest",
        "truth at most",
        "claims broken",
        "nearest adversarial image: median (found)",
        "median of claimed radius over that distance",
    )
    return (
        "## On the image, estimated: no guarantee\n\nGaussians with chosen regularisation on encoders b and c, `exact` "
        "latent radii over an estimated constant, at most 0.5, the ball that is spoken of. The paper's numbers are "
        f"of this kind. CLEVER here: {sizes['clever_batches']} batches of {sizes['clever_samples']} points (the paper: "
        f"500 of 1,024).\n\n{table(head, accuracy)}\n\nWhat such radii are worth: attacks on each claim at its own "
        f"radius ({sizes['steps']} steps), and the nearest image of another class that attacks found within 2, by "
        f"halving, to within {REACH / 2**HALVINGS:.2g}. Where the last column is near 1 or above, an estimate claims "
        "what an attack refutes, or nearly.\n\n"
        f"{table(columns, numbers)}"
    )


def _costs(facts: Facts, settings: Mapping[str, Any]) -> str:
    found = facts["costs"]
    lines = [
        (label, f"`{kind}`", _seconds(found["median"][name]), f"{found['gigabytes'][name]:.2f}")
        for name, (label, kind) in _cost_names().items()
    ]
    ratios = [(f"`{name}`", f"{value:,.1f}") for name, value in found["ratios"].items()]
    return (
        "## What it costs\n\nOne image, all in one process on one core, one after the other in each of "
        f"{settings['sizes']['rounds']} rounds; medians. Memory is the peak of the whole process, with what it holds "
        f"besides.\n\n{table(('', 'claim', 'seconds an image', 'GB'), lines)}\n\n"
        f"{table(('ratio, median over rounds', ''), ratios)}"
    )


def _cost_names() -> dict[str, tuple[str, str]]:
    """Return what each cost is of, and its kind of claim."""
    return {
        "latent_theorem": ("closed form of Theorem 4.1, given feature and constant", "exact"),
        "latent_pairwise": ("closed form `pairwise`, given feature and constant", "exact"),
        "latent_exact": ("`exact` radius, given feature and constant", "exact"),
        "deterministic": ("image to proven radius: network, `exact`, rounding measured in float64", "deterministic"),
        f"votes_linear_{votes.FEW}": (f"Cohen et al., linear head, n = {votes.FEW:,}", "probabilistic"),
        f"votes_linear_{votes.MANY}": (f"Cohen et al., linear head, n = {votes.MANY:,}", "probabilistic"),
        f"votes_art_{votes.FEW}": (
            f"the same by the Adversarial Robustness Toolbox, n = {votes.FEW:,}",
            "probabilistic",
        ),
        f"votes_art_{votes.MANY}": (
            f"the same by the Adversarial Robustness Toolbox, n = {votes.MANY:,}",
            "probabilistic",
        ),
        f"votes_ellips_{votes.FEW}": (f"ELLIPS votes, n = {votes.FEW:,}", "probabilistic"),
        f"votes_ellips_{votes.MANY}": (f"ELLIPS votes, n = {votes.MANY:,}", "probabilistic"),
        "votes_early": (f"ELLIPS votes, early stopping, n ≤ {votes.MANY:,}", "probabilistic"),
        f"smoothed_encoder_{votes.FEW}": (f"encoder smoothed, n = {votes.FEW:,}", "probabilistic"),
        "jacobian": ("Jacobian norm at the image", "estimated"),
        "clever": ("CLEVER, with the settings above", "estimated"),
    }


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{1000 * value:.3g} ms"


def _theory(facts: Facts, stem: str) -> str:
    found = facts["theory"]
    columns = (("count", ".0f"), ("skewness", ".0f"), ("skewness_pvalue", ".2g"))
    columns += (("kurtosis", ".0f"), ("kurtosis_pvalue", ".2g"))
    rows = [(f"{k}", *(f"{row[key]:{form}}" for key, form in columns)) for k, row in enumerate(found["mardia"])]
    bound = found["degradation"]
    if bound["refused"] is None:
        radii = list(bound["fitted"])
        lines = [
            (label, *(f"{bound[key][r]:.1f}" for r in radii))
            for key, label in (
                ("fitted", "on draws from the fitted mixture"),
                ("bound", "less what misfit may cost: the bound"),
                ("measured", "measured on the test split"),
            )
        ]
        text = (
            f"KL(P‖Q) is estimated at {bound['kl']:.1f} nats (nearest neighbours, k = {bound['neighbors']}, n = "
            f"{bound['count']:,}, d = {bound['dim']}), which bounds the total variation distance by "
            f"{bound['total_variation']:.3f} ({bound['inequality'].replace('_', '–')}).\n\n"
            + table(("certified accuracy, latent unit", *radii), lines)
        )
    else:
        text = f"The bound was not computed: {bound['refused']}"
    return (
        "## How Gaussian the features are\n\nEncoder b, the whole test split. Mardia's tests at a joint level of 5 %: "
        f"**{found['passed']} of {len(found['mardia'])} classes pass**.\n\n"
        + table(("class", "images", "skewness", "p", "kurtosis", "p"), rows)
        + f"\n\n![Spectra of the classes' covariances]({stem}_spectra.svg)\n\n### The degradation bound\n\n{text}"
    )


def _made_with(settings: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    counts = ", ".join(f"{split} {count:,}" for split, count in settings["data"]["counts"].items())
    return (
        f"## Made with\n\n- {machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} thread; "
        f"Python {machine['python']}\n- {versions}\n- pictures: {counts}; seed {settings['sizes']['seed']}\n"
        "- Run again with the same options, the command gives the same accuracies and radii; a run that was stopped "
        "goes on from its finished parts."
    )

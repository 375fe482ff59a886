"""Pictures of the Gaussians: what is drawn is the mixture that certifies, and all of what is claimed of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.patches import Ellipse
from scipy.stats import multivariate_normal

from ellips import Ellips
from ellips.reporting.latents import plot_latents, plot_radii_by_class, plot_spectra

GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def anew() -> None:
    """Every test draws the same, whichever came before."""
    GENERATOR.manual_seed(0)


def mixture(classes: int = 3, dim: int = 2) -> Ellips:
    roots = torch.randn(classes, dim, dim, generator=GENERATOR, dtype=torch.float64) + 2 * torch.eye(dim)
    means = 4 * torch.randn(classes, dim, generator=GENERATOR, dtype=torch.float64)
    return Ellips.from_parameters(means, roots @ roots.mT, torch.full((classes,), 1 / classes))


def test_ellipses_hold_the_share_of_their_gaussian_that_they_say() -> None:
    ellips = mixture()
    z, labels = ellips.sample(3000, generator=GENERATOR)
    axes = plot_latents(ellips, z, labels, ["a", "$b$", "<c>"], masses=(0.5, 0.9)).axes[0]
    ellipses = [patch for patch in axes.patches if isinstance(patch, Ellipse)]
    assert len(ellipses) == 6
    for place, patch in enumerate(ellipses):
        k, mass = place // 2, (0.5, 0.9)[place % 2]
        inside = patch.contains_points(axes.transData.transform(z[labels == k].numpy()))
        assert inside.mean() == pytest.approx(mass, abs=0.04)
        # Every point of an ellipse is as likely as any other.
        edge = patch.get_path().transformed(patch.get_patch_transform()).vertices[::3]
        density = multivariate_normal(ellips.means[k].numpy(), ellips.covariances[k].numpy()).pdf(edge)
        np.testing.assert_allclose(density, density[0], rtol=0.01)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", r"\$b\$", "<c>"]


def test_in_more_dimensions_the_plane_is_the_one_that_tells_classes_apart() -> None:
    means = torch.zeros(3, 5, dtype=torch.float64)
    means[1, 3], means[2, 1] = 40.0, 20.0
    spread = torch.diag(torch.tensor([100.0, 4.0, 100.0, 4.0, 100.0], dtype=torch.float64))
    ellips = Ellips.from_parameters(means, spread.expand(3, 5, 5), torch.full((3,), 1 / 3))
    z, labels = ellips.sample(300, generator=GENERATOR)
    axes = plot_latents(ellips, z, labels).axes[0]
    drawn = [np.asarray(points.get_offsets()) for points in axes.collections]
    centers = np.stack([points.mean(0) for points in drawn])
    # In units of the standard deviation, 2 along both axes: distances of 20 and 10, the noise of the others left out.
    assert np.linalg.norm(centers[1] - centers[0]) == pytest.approx(20, abs=1)
    assert np.linalg.norm(centers[2] - centers[0]) == pytest.approx(10, abs=1)
    assert all(points.std(0) == pytest.approx(1, abs=0.2) for points in drawn)
    assert axes.get_xlabel() == "discriminant 1"


@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank"])
def test_spectra_are_those_of_the_covariances(kind: str) -> None:
    z, labels = mixture(3, 4).sample(600, generator=GENERATOR)
    ellips = Ellips(3, 4, covariance_type=kind, rank=2 if kind == "low_rank" else None, shrinkage=0.1).fit(z, labels)
    lines = plot_spectra(ellips).axes[0].get_lines()
    expected = torch.linalg.eigvalsh(ellips.covariances).sqrt().flip(1)
    np.testing.assert_allclose([line.get_ydata() for line in lines], expected.numpy(), rtol=1e-9)
    plot_latents(ellips, z, labels)


def test_of_many_classes_the_first_are_shown_and_the_title_says_so() -> None:
    ellips = mixture(5, 3)
    z, labels = ellips.sample(50, generator=GENERATOR)
    for figure in (plot_latents(ellips, z, labels, most_classes=2), plot_spectra(ellips, most_classes=2)):
        assert "(2 of 5 classes)" in figure.axes[0].get_title()
        assert len(figure.axes[0].get_legend().get_texts()) == 2
    with pytest.raises(ValueError, match="`dim`"):
        plot_latents(mixture(2, 1), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"masses\[0\]"):
        plot_latents(ellips, z, labels, masses=[1.0])


def test_radii_are_counted_once_by_class_and_by_whether_they_are_right() -> None:
    radius = torch.tensor([0.1, 0.1, 1.0, torch.inf, 0.5, 0.0])
    prediction, target = torch.tensor([0, 0, 0, 0, 0, -1]), torch.tensor([0, 0, 0, 0, 2, 2])
    axes = plot_radii_by_class(radius, prediction, target, ["a", "b", "c"], space="latent", soundness="exact").axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["c", "a"]
    right_a, wrong_a, right_c, wrong_c = (patch.get_data() for patch in axes.patches)
    counts = [np.round((part.values - part.baseline) / 0.425) for part in (right_a, wrong_a)]  # the tallest bin has two
    assert counts[0].sum() == 4
    assert counts[0][-1] == 2  # 1.0, and what has no limit
    assert counts[1].sum() == 0
    assert (right_c.values - right_c.baseline).sum() == 0
    assert ((wrong_c.values - wrong_c.baseline) > 0).sum() == 2
    assert "exact: proven" in axes.get_title()


def test_of_many_classes_the_weakest_are_shown() -> None:
    target = torch.arange(6).repeat(2)
    radius = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1, 9.0]).repeat(2)
    prediction = torch.where(target == 5, 0, target)  # class 5 is wrong, with the largest radii
    figure = plot_radii_by_class(radius, prediction, target, space="input", soundness="estimated", most_classes=3)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["5", "4", "3"]
    assert "(3 weakest of 6)" in figure.axes[0].get_title()
    with pytest.raises(ValueError, match="at least one radius"):
        plot_radii_by_class(radius[:0], target[:0], target[:0], space="input", soundness="estimated")

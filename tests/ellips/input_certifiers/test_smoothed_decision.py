from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from scipy.stats import beta, norm
from torch import Tensor, nn

from ellips import Ellips
from ellips.input_certifiers import ArtSmoothedDecision, Chain, InputCertifier, SmoothedDecision, SmoothedEncoder
from ellips.smoothing import ImageNoise, count_votes
from ellips.types import Series
from tests.ellips.input_certifiers.chains import Case, case
from tests.ellips.mixtures import random_mixture
from tests.soundness.votes import first_pixel, gaussians


def line(distances: list[float]) -> Case:
    """Two equal Gaussians whose boundary is where the first pixel is 0: the vote's is the same."""
    means = torch.tensor([[-0.5], [0.5]]).double()
    ellips = Ellips.from_parameters(means, 0.1 * torch.ones(2, 1, 1).double(), torch.tensor([0.5, 0.5]))
    images = torch.rand(len(distances), 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.tensor(distances)
    return case(Chain(lambda x: x[:, 0, 0, :1], ellips), images)


def test_the_certificate_says_what_it_is() -> None:
    given = line([0.9, -0.35, 0.0])
    certifier = SmoothedDecision(0.25, 1000, radii=(0.25, 0.5))
    found = certifier.certify(*given)
    assert (found.method, found.space, found.soundness) == ("votes", "input", "probabilistic")
    assert found.prediction.tolist() == [1, 0, -1]
    assert found.radius[0] == 0.5  # the largest that is asked for
    assert 0.25 <= found.radius[1] < 0.35
    assert found.radius[2] == 0
    assert found.lipschitz is None
    assert (found.diagnostics["votes"] <= found.diagnostics["draws"]).all()
    assert found.diagnostics["draws"].max() <= 1000
    assert found.diagnostics["selection_draws"].tolist() == [51, 100, 100]
    assert certifier.series("exact") == Series("input", "votes", "smoothed-decision")
    assert found.source == repr(certifier)


def test_fixed_draws_give_the_radius_of_cohen_et_al() -> None:
    certifier = SmoothedDecision(0.25, 500, 0.01, stopping="fixed")
    found = certifier.certify(*line([0.1, 0.2, 0.3, 0.4]))
    votes = found.diagnostics["votes"].numpy()
    assert found.diagnostics["draws"].tolist() == [500.0] * 4
    assert found.radius.tolist() == (0.25 * norm.ppf(beta.ppf(0.01, votes, 500 - votes + 1))).tolist()


def encoder_and_head(folder: Path) -> tuple[Chain, str]:
    """An encoder with three features, and a linear head's file on them that votes otherwise than the Gaussians."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()).eval().requires_grad_(False)
    head = {"weight": torch.randn(5, 3), "bias": torch.randn(5)}
    save_file(head, folder / "head.safetensors")
    ellips = Ellips.from_parameters(
        torch.randn(5, 3).double(), torch.eye(3).double().expand(5, 3, 3), torch.ones(5) / 5
    )
    return Chain(encoder, ellips, encoder), str(folder / "head.safetensors")


def test_the_encoders_own_linear_head_may_vote_on_the_same_noise(tmp_path: Path) -> None:
    chain, file = encoder_and_head(tmp_path)
    given = case(chain, torch.rand(6, 1, 2, 2))
    certifier = SmoothedDecision(0.5, 400, linear_head=file, stopping="fixed")
    found = certifier.certify(*given)
    state = load_file(file)
    copies = torch.empty(400, 1, 2, 2)
    for i, image in enumerate(given.images):
        ImageNoise(image, 0.5, 0, "estimation").fill(copies)
        votes = (chain.latents(copies) @ state["weight"].T + state["bias"]).argmax(1).bincount(minlength=5)
        assert found.diagnostics["votes"][i] == votes[found.prediction[i]] or found.prediction[i] == -1
    assert certifier.series("exact").name == "input-votes-smoothed-decision-linear-head"
    gaussians = SmoothedDecision(0.5, 400, stopping="fixed").certify(*given)
    assert not torch.equal(gaussians.prediction, found.prediction)
    target = certifier.target(chain).predict(given.images.double())
    assert ((target == found.prediction) | (target < 0) | (found.prediction < 0)).all()


def test_autocast_around_them_changes_no_vote(tmp_path: Path) -> None:
    """A vote of copies that bfloat16 rounds is another classifier than the one that is used afterwards."""
    chain, file = encoder_and_head(tmp_path)
    given = case(chain, torch.rand(6, 1, 2, 2))
    for head in (None, file):
        certifier = SmoothedDecision(0.5, 1000, linear_head=head, stopping="fixed")
        found = certifier.certify(*given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            around = certifier.certify(*given)
            scores = certifier.scores(chain)(given.images)
        assert torch.equal(around.diagnostics["votes"], found.diagnostics["votes"])
        assert torch.equal(around.prediction, found.prediction)
        assert torch.equal(scores, certifier.scores(chain)(given.images))


@pytest.mark.parametrize("named", ["head.safetensors", ""])
def test_a_head_that_was_trained_again_votes_itself_however_it_is_named(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path below the home folder, or by the folder that holds it, the first head went on voting."""
    monkeypatch.setenv("HOME", str(tmp_path))
    chain, file = encoder_and_head(tmp_path)
    given = case(chain, torch.rand(3, 1, 2, 2))
    for name in (str(Path("~") / named), str(tmp_path / named)):
        certifier, state = SmoothedDecision(0.5, 400, linear_head=name), load_file(file)
        other = (int(certifier.certify(*given).prediction.max()) + 1) % 5
        state["bias"] = 1e3 * torch.eye(5)[other]
        save_file(state, file)
        assert (certifier.certify(*given).prediction == other).all()


def test_a_head_without_its_encoder_is_refused(tmp_path: Path) -> None:
    chain, file = encoder_and_head(tmp_path)
    given = case(chain._replace(features=None), torch.rand(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"Expected an encoder with 3 features .* a classifier without one"):
        SmoothedDecision(linear_head=file).certify(*given)
    chain.features.feature_dim = 7  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="but got one with 7"):
        SmoothedDecision(linear_head=file).certify(*case(chain, torch.rand(2, 1, 2, 2)))


@pytest.mark.skipif(importlib.util.find_spec("art") is None, reason="ART is not installed (extra `bench`)")
def test_the_toolbox_finds_the_same_on_the_same_noise(tmp_path: Path) -> None:
    chain, file = encoder_and_head(tmp_path)
    given = case(chain, torch.rand(10, 1, 2, 2))
    for head in (None, file):
        ours = SmoothedDecision(0.5, 300, 0.01, stopping="fixed", linear_head=head).certify(*given)
        theirs = ArtSmoothedDecision(0.5, 300, 0.01, chunk_size=77, linear_head=head).certify(*given)
        assert torch.equal(ours.prediction, theirs.prediction)
        torch.testing.assert_close(ours.radius, theirs.radius, rtol=1e-12, atol=0)
        assert (ours.radius > 0).any()
    with pytest.raises(ValueError, match="`stopping` to be 'fixed'"):
        ArtSmoothedDecision(stopping="early")


@pytest.mark.parametrize("kind", [SmoothedDecision, SmoothedEncoder])
def test_noise_in_half_precision_is_refused(kind: type[InputCertifier]) -> None:
    chain, images = Chain(first_pixel, gaussians(0, 2)), torch.rand(2, 1, 1, 2)
    latents = chain.latents(images)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(
            ValueError, match=f"float32 or float64, to which Gaussian noise can be added, but got {dtype}"
        ):
            kind().certify(chain, images.to(dtype), latents, chain.ellips.certify(latents))


def test_an_audit_lets_each_image_fail_with_its_share_of_alpha_alone() -> None:
    chain = Chain(first_pixel, gaussians(0, 2))
    for kind in (SmoothedDecision, SmoothedEncoder):
        assert kind(alpha=0.05, num_images=100).target(chain).alpha == 0.05 / 100


def test_alpha_is_shared_by_the_images_of_a_run() -> None:
    alone = SmoothedDecision(0.25, 500, 0.01, stopping="fixed")
    shared = SmoothedDecision(0.25, 500, 0.01, num_images=100, stopping="fixed")
    one, other = (certifier.certify(*line([0.1, 0.2, 0.4])) for certifier in (alone, shared))
    assert (other.radius < one.radius).all()
    shared.validate_run(100)
    alone.validate_run(10_000)
    with pytest.raises(ValueError, match=r"at most num_images=100 .* but got 101"):
        shared.validate_run(101)


def test_the_seed_makes_the_noise_and_nothing_else_does() -> None:
    given, settings = line([0.1, 0.2, 0.3]), {"sigma": 0.25, "num_samples": 300, "stopping": "fixed"}
    first = SmoothedDecision(**settings, chunk_size=7).certify(*given)
    torch.manual_seed(99)
    again = SmoothedDecision(**settings, chunk_size=100).certify(*given)
    other = SmoothedDecision(**settings, seed=1).certify(*given)
    assert torch.equal(first.diagnostics["votes"], again.diagnostics["votes"])
    assert not torch.equal(first.diagnostics["votes"], other.diagnostics["votes"])


def test_early_stopping_takes_fewer_draws_and_decides_the_same() -> None:
    given = line([0.05 * i for i in range(1, 15)])
    radii = (0.125, 0.25, 0.375, 0.5)
    early = SmoothedDecision(0.25, 10_000, radii=radii).certify(*given)
    fixed = SmoothedDecision(0.25, 10_000, stopping="fixed").certify(*given)
    assert early.diagnostics["draws"].mean() < 0.5 * fixed.diagnostics["draws"].mean()
    for radius in radii:
        assert (early.radius >= radius).sum() >= (fixed.radius >= radius).sum() - 1


def test_votes_are_those_of_the_composed_classifier_not_of_the_mean() -> None:
    """The latent oscillates: the mean under noise is 0 everywhere, while two thirds of the votes are for one class."""

    class Stripes(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            stripe = torch.floor(images[:, 0, 0, :1] * 1000) % 3
            return torch.where(stripe < 2, -0.5, 1.0)

    given = line([0.3, 0.7])._replace(chain=Chain(Stripes().eval(), line([]).chain.ellips))
    found = SmoothedDecision(0.25, 2000, stopping="fixed").certify(*given)
    assert found.prediction.tolist() == [0, 0]
    torch.testing.assert_close(found.diagnostics["votes"] / 2000, torch.full((2,), 2 / 3).double(), atol=0.04, rtol=0)


def test_settings_come_from_yaml_and_bad_ones_are_named() -> None:
    parser = ArgumentParser()
    parser.add_argument("--certifier", type=InputCertifier)
    arguments = {"sigma": 0.5, "radii": [0.25, 1], "stopping": "early"}
    item = {"class_path": "ellips.input_certifiers.SmoothedDecision", "init_args": arguments}
    built = parser.instantiate(parser.parse_object({"certifier": item})).certifier
    assert built == SmoothedDecision(0.5, radii=(0.25, 1.0))
    for bad, name in [
        ({"sigma": 0.0}, "sigma"),
        ({"num_samples": 0}, "num_samples"),
        ({"alpha": 1.0}, "alpha"),
        ({"num_selection": 0}, "num_selection"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"stopping": "never"}, "stopping"),
        ({"radii": (-1.0,)}, "radii"),
        ({"radii": (float("inf"),)}, "radii"),
        ({"radii": (float("nan"),)}, "radii"),
    ]:
        with pytest.raises(ValueError, match=f"`{name}`"):
            SmoothedDecision(**bad)  # type: ignore[arg-type]


def test_votes_in_many_dimensions_are_those_of_scores_in_float64() -> None:
    """Their float32 decides most copies; near boundaries float64 does, so that no count differs."""
    ellips = random_mixture("full", 4, 75, spread=0.1)
    chain = Chain(lambda images: 4 * images.flatten(1) - 2, ellips)
    images = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    certifier = SmoothedDecision(0.25, 500, radii=(0.125, 0.25))
    found = certifier.vote(chain, images)
    assert 0 < (found.votes < found.draws).sum()
    expected = count_votes(chain.decide, images, certifier.plan, num_selection=certifier.num_selection, seed=0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))

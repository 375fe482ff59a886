"""What holds for every input certifier alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from ellips.input_certifiers import (
    ArtSmoothedDecision,
    ByConstant,
    Chain,
    InputCertifier,
    MarginClever,
    SmoothedDecision,
    SmoothedEncoder,
    as_certifier,
    series_of,
)
from ellips.lipschitz import Clever, ConstantSource, JacobianNorm, KnownConstant, SpectralProduct
from ellips.settings import describe
from ellips.types import Series
from tests.ellips.input_certifiers.chains import FEW, Case, case, gaussians, relu_chain

CERTIFIERS: dict[str, InputCertifier] = {
    "a known constant": ByConstant(KnownConstant(3.0)),
    "the Jacobian": ByConstant(JacobianNorm(tolerance=0.0)),
    "CLEVER": ByConstant(Clever(**FEW)),
    "the spectral product": ByConstant(SpectralProduct()),
    "margins": MarginClever(**FEW),
    "smoothing": SmoothedEncoder(num_samples=3000, sigma=0.05),
    "votes by ART": ArtSmoothedDecision(num_samples=200, sigma=0.05, alpha=0.01),
    "votes": SmoothedDecision(num_samples=200, sigma=0.05, alpha=0.01, radii=(0.02, 0.1)),
}
every = pytest.mark.parametrize("certifier", CERTIFIERS.values(), ids=CERTIFIERS)


@pytest.fixture
def given() -> Case:
    return case(relu_chain(), torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0)))


def concrete(kind: type) -> Iterator[type]:
    """The classes of the library that derive from another."""
    for child in kind.__subclasses__():
        yield from concrete(child)
        if child.__module__.startswith("ellips."):
            yield child


def test_no_certifier_and_no_source_is_left_out_here() -> None:
    tested = {type(certifier) for certifier in CERTIFIERS.values()}
    assert tested == set(concrete(InputCertifier))
    assert {type(c.source) for c in CERTIFIERS.values() if isinstance(c, ByConstant)} == set(concrete(ConstantSource))


@pytest.mark.parametrize(
    "kind",
    [ArtSmoothedDecision, MarginClever, SmoothedDecision, SmoothedEncoder, Clever, JacobianNorm, SpectralProduct],
    ids=lambda kind: kind.__name__,
)
def test_it_is_built_from_its_class_path(kind: type) -> None:
    parser = ArgumentParser()
    parser.add_argument("--certifier", type=InputCertifier | ConstantSource)
    room = "input_certifiers" if issubclass(kind, InputCertifier) else "lipschitz"
    built = parser.instantiate(parser.parse_args([f"--certifier=ellips.{room}.{kind.__name__}"])).certifier
    assert type(built) is kind
    assert built == kind()
    assert as_certifier(built) == as_certifier(kind())


def test_a_source_inside_a_certifier_is_built_from_its_class_path() -> None:
    parser = ArgumentParser()
    parser.add_argument("--certifiers", type=list[InputCertifier | ConstantSource])
    source = {"class_path": "ellips.lipschitz.Clever", "init_args": {"radius": 0.125}}
    wrapped = {"class_path": "ellips.input_certifiers.ByConstant", "init_args": {"source": source}}
    built = parser.instantiate(parser.parse_object({"certifiers": [wrapped, source]})).certifiers
    assert [as_certifier(item) for item in built] == 2 * [ByConstant(Clever(0.125))]


@every
def test_settings_are_frozen_and_all_of_them_recorded(certifier: InputCertifier) -> None:
    recorded = describe(certifier)
    names = [item.name for item in fields(certifier)]  # type: ignore[arg-type]
    # All but how much goes through the network at once, on which no result depends (tests/ellips/test_chunks.py).
    names = [name for name in names if name != "chunk_size"]
    assert recorded.keys() == {"class_path", *names}
    assert recorded["class_path"] == f"{type(certifier).__module__}.{type(certifier).__name__}"
    for name in names:
        assert recorded[name] == describe(getattr(certifier, name))
    with pytest.raises(FrozenInstanceError):
        setattr(certifier, names[0], 1)


def test_a_change_inside_of_a_source_is_recorded() -> None:
    one = ByConstant(Clever(**FEW))
    assert describe(replace(one, source=replace(one.source, seed=1))) != describe(one)  # type: ignore[type-var]


@every
def test_the_certificate_is_one_of_images(certifier: InputCertifier, given: Case) -> None:
    found = certifier.certify(*given)
    assert found.space == "input"
    assert found.soundness != "exact"
    assert len(found) == 5
    assert found.radius.dtype == torch.float64
    assert (found.radius > 0).any()
    assert str(type(getattr(certifier, "source", certifier)).__name__) in str(found.source)
    if not isinstance(certifier, SmoothedDecision):  # the only one without a constant
        assert torch.equal(found.lipschitz.isfinite(), torch.ones(5, dtype=torch.bool))


@every
def test_no_point_inside_the_radius_is_predicted_otherwise(certifier: InputCertifier, given: Case) -> None:
    found, target = certifier.certify(*given), certifier.target(given.chain)
    rival = given.chain.ellips(given.latents).argsort(1)[:, -2]
    images = given.images.clone().requires_grad_()
    scores = target.scores(images)
    (scores.gather(1, rival[:, None]).sum() - scores.max(1).values.sum()).backward()
    towards_rival = images.grad / torch.linalg.vector_norm(images.grad.flatten(1), dim=1).view(5, 1, 1, 1)

    def unchanged(factor: float) -> Tensor:
        moved = given.images.double() + (factor * found.radius).view(5, 1, 1, 1) * towards_rival
        predicted = target.predict(moved)
        return (predicted == found.prediction) | (predicted < 0)

    # An estimate promises nothing; on networks as tame as this one it is nearly the truth.
    assert unchanged(0.98 if found.soundness == "estimated" else 1 - 1e-9).all()
    assert not unchanged(300.0).all()


@every
def test_the_target_predicts_what_was_certified(certifier: InputCertifier, given: Case) -> None:
    found, target = certifier.certify(*given), certifier.target(given.chain)
    assert torch.equal(target.predict(given.images.double()), found.prediction)
    images = given.images.clone().requires_grad_()
    target.scores(images).max(1).values.sum().backward()
    assert (images.grad.flatten(1).abs().amax(1) > 0).all()
    assert (target.alpha is not None) == (found.soundness == "probabilistic")


@every
def test_the_target_names_the_map_whose_constant_is_claimed(certifier: InputCertifier, given: Case) -> None:
    function = certifier.target(given.chain).function
    assert (function is not None) == isinstance(certifier, ByConstant)
    if function is not None:
        latents = function(given.images.double())
        assert latents.dtype == torch.float64
        torch.testing.assert_close(latents.float(), given.latents)
        assert given.chain.latents[1].weight.dtype == torch.float32  # the network itself is as it was


@every
def test_each_image_is_certified_by_itself(certifier: InputCertifier, given: Case) -> None:
    whole = certifier.certify(*given)
    order = [3, 1]
    part = certifier.certify(
        given.chain, given.images[order], given.latents[order], given.certificate[torch.tensor(order)]
    )
    torch.testing.assert_close(part.radius, whole.radius[order], rtol=1e-5, atol=0)
    assert torch.equal(part.prediction, whole.prediction[order])


@every
def test_no_images_give_an_empty_certificate(certifier: InputCertifier) -> None:
    found = certifier.certify(*case(relu_chain(), torch.empty(0, 1, 6, 6)))
    assert (len(found), found.space) == (0, "input")


@every
def test_wrong_images_and_layers_in_training_mode_are_refused(certifier: InputCertifier, given: Case) -> None:
    with pytest.raises(ValueError, match="Expected `images` to be finite"):
        certifier.certify(*given._replace(images=torch.full_like(given.images, float("nan"))))
    with pytest.raises(ValueError, match=r"Expected `images` .* shape \(N, C, H, W\)"):
        certifier.certify(*given._replace(images=given.images[0]))

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.drop = given.chain.latents, nn.Dropout(0.1)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(self.drop(images))

        def scored(self, images: Tensor) -> Tensor:
            return self(images)

    noisy = Noisy().train()
    for latents in (noisy, noisy.scored):
        with pytest.raises(ValueError, match="`drop` \\(Dropout\\) in training mode"):
            certifier.certify(*given._replace(chain=Chain(latents, gaussians())))


@every
def test_a_certifier_is_no_source_of_a_constant_of_what_it_is_given(certifier: InputCertifier) -> None:
    """Where one may divide by a constant, there is nothing else to take: the smoothed map's is not the encoder's."""
    assert not isinstance(certifier, ConstantSource)
    assert not callable(certifier)


def test_series_are_named_after_what_carries_the_radius_and_numbered_where_it_comes_again() -> None:
    certifiers = [
        *map(as_certifier, (JacobianNorm(), KnownConstant(1.0), KnownConstant(2.0), KnownConstant(3.0))),
        MarginClever(),
        SmoothedEncoder(),
        as_certifier(Clever()),
        MarginClever(0.1),
    ]
    found = series_of(certifiers, "pairwise")
    assert [series.name for series in found] == [
        "input-pairwise-jacobian-norm",
        "input-pairwise-known-constant",
        "input-pairwise-known-constant-2",
        "input-pairwise-known-constant-3",
        "input-margin-clever",
        "input-pairwise-smoothed-encoder",
        "input-pairwise-clever",
        "input-margin-clever-2",
    ]
    assert found[2] == Series("input", "pairwise", "known-constant-2")

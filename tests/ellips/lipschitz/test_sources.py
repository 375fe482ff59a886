"""What holds for every source of a constant alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from jsonargparse import ArgumentParser

from ellips.lipschitz import Clever, ConstantSource, JacobianNorm, KnownConstant, SpectralProduct
from ellips.settings import describe
from tests.ellips.affine import ENCODERS, SHAPE, affine_encoder

SOURCES: dict[str, Callable[[float], ConstantSource]] = {
    "Clever": lambda truth: Clever(num_batches=10, num_samples=8),
    "JacobianNorm": lambda truth: JacobianNorm(),
    "KnownConstant": lambda truth: KnownConstant(truth),
    "SpectralProduct": lambda truth: SpectralProduct(),
    "SpectralProduct by rules": lambda truth: SpectralProduct(dense_limit=0),
}


def test_no_source_is_left_out_here() -> None:
    tested = {type(make(1.0)) for make in SOURCES.values()}
    assert tested == {kind for kind in ConstantSource.__subclasses__() if kind.__module__.startswith("ellips.")}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", SOURCES)
def test_sound_sources_are_at_least_the_truth_and_estimates_within_one_percent_below(name: str, encoder: str) -> None:
    function, truth = affine_encoder(encoder)
    bound = SOURCES[name](truth)(function, torch.rand(2, *SHAPE))
    lowest = 0.99 * truth if bound.soundness == "estimated" else truth
    assert (bound.constant >= lowest).all()


@pytest.mark.parametrize("source", [Clever, JacobianNorm, SpectralProduct], ids=lambda source: source.__name__)
def test_every_source_is_built_from_its_class_path(source: type[ConstantSource]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--source", type=ConstantSource)
    name = f"ellips.lipschitz.{source.__name__}"
    built = parser.instantiate(parser.parse_args([f"--source={name}"])).source
    assert type(built) is source
    assert built == source()
    assert vars(built) == vars(source())


def test_a_known_constant_is_built_from_its_class_path() -> None:
    parser = ArgumentParser()
    parser.add_argument("--source", type=ConstantSource)
    arguments = parser.parse_args(["--source=ellips.lipschitz.KnownConstant", "--source.constant=2.0"])
    assert parser.instantiate(arguments).source == KnownConstant(2.0)


@pytest.mark.parametrize("name", SOURCES)
def test_settings_are_frozen_and_all_of_them_recorded(name: str) -> None:
    source = SOURCES[name](2.0)
    settings = [item.name for item in fields(source) if item.init and item.name != "chunk_size"]  # changes no result
    recorded = describe(source)
    assert recorded.keys() == {"class_path", *settings}
    assert {key: recorded[key] for key in settings} == {key: getattr(source, key) for key in settings}
    assert all(f"{key}={getattr(source, key)!r}" in repr(source) for key in settings)
    with pytest.raises(FrozenInstanceError):
        setattr(source, settings[0], 1)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("LipschitzEncoder", "ellips.encoders.LipschitzEncoder"),
        ("SmoothedEncoder", "ellips.input_certifiers.SmoothedEncoder"),
        ("MarginClever", "ellips.input_certifiers.MarginClever"),
        ("LipschitzBound", "ellips.types.LipschitzBound"),
        ("LipschitzSource", "ellips.lipschitz.ConstantSource"),
    ],
)
def test_what_moved_away_says_where_it_is(name: str, where: str) -> None:
    import ellips.lipschitz

    with pytest.raises(AttributeError, match=where.replace(".", r"\.")):
        getattr(ellips.lipschitz, name)

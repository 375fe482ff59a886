from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ellips.encoders import FrozenEncoder, LipNeXt, LipNeXtArchitecture, LipschitzEncoder, OrthogonalMuon
from ellips.encoders.lipnext import singular_value_product
from ellips.encoders.lipschitz import export_encoder, prove, read_architecture
from ellips.encoders.orthogonal import polar
from ellips.encoders.spatial import absolute_and_shift, exchanged, partial_absolute, pooled, shift, space_to_depth
from ellips.lipschitz import SpectralProduct

TINY = LipNeXtArchitecture((1, 4, 4), (2,), (11,), (2,), 0.3, 6)
MIRRORED = LipNeXtArchitecture((1, 4, 4), (2,), (22,), (2,), 0.3, 6, products=1, mirrored=True)
POOLED = LipNeXtArchitecture((1, 8, 8), (2, 1), (11, 12), (2, 1), 0.3, 8, products=1, pools=(1, 2), regions=2)
TWO_STAGES = LipNeXtArchitecture((2, 8, 4), (2, 2), (9, 40), (1, 2), 0.5, 7)


def maps(channels: int = 11, size: tuple[int, int] = (4, 6)) -> Tensor:
    return torch.randn(5, *size, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def lengths(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)


KINDS = {
    "two_products": TINY,
    "one_product": replace(TINY, products=1),
    "pooled_between": POOLED,
    "mirrored": MIRRORED,
    "reflecting": replace(TINY, products=1, reflecting=True),
    "mirrored_reflecting": replace(MIRRORED, reflecting=True),
}


@pytest.fixture(scope="module", params=KINDS)
def tiny(request: pytest.FixtureRequest) -> LipNeXtArchitecture:
    """Blocks of two products, and of one; pooling between stages and at the end over four parts; mirrored; edges."""
    return KINDS[request.param]


@pytest.fixture(scope="module")
def trained(tiny: LipNeXtArchitecture) -> LipNeXt:
    """A tiny network after some steps, with positions that are not zero."""
    torch.manual_seed(0)
    network = tiny.trainable()
    matrices = tiny.manifold(network)
    others = [stage.positions for stage in network.stages]
    optimizer = OrthogonalMuon([{"params": matrices, "orthogonal": True}, {"params": others}], lr=0.03)
    images, labels = torch.rand(40, *tiny.image_shape), torch.arange(40) % 6
    first = last = 0.0
    for step in range(42):  # two steps after the last polar one
        optimizer.zero_grad()
        loss = functional.cross_entropy(5 * network(images), labels)
        loss.backward()
        optimizer.step()
        first, last = (float(loss.detach()) if step == 0 else first), float(loss.detach())
    assert last < first - 0.1
    return network


@pytest.fixture(scope="module")
def exported(
    trained: LipNeXt, tiny: LipNeXtArchitecture, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    return path, export_encoder(trained, tiny, path)


def test_space_to_depth_is_an_isometry_that_keeps_squares_together() -> None:
    left, right = maps(3), maps(3).flip(0)
    torch.testing.assert_close(
        lengths(space_to_depth(left, 2) - space_to_depth(right, 2)), lengths(left - right), rtol=1e-12, atol=0
    )
    result = space_to_depth(left, 2)
    assert result.shape == (5, 2, 3, 12)
    for row, column in ((0, 0), (1, 2)):
        square = left[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(result[0, row, column], square.flatten())


def test_a_shift_is_an_isometry_and_moves_five_groups() -> None:
    left, right = maps(), maps().flip(0)
    torch.testing.assert_close(lengths(shift(left) - shift(right)), lengths(left - right), rtol=1e-12, atol=0)
    point = torch.zeros(1, 4, 6, 11)
    point[0, 0, 5] = 1
    where = {tuple(place[1:3]): 0 for place in shift(point).nonzero().tolist()}
    for place in shift(point).nonzero().tolist():
        where[tuple(place[1:3])] += 1
    assert where == {(0, 5): 3, (1, 5): 2, (3, 5): 2, (0, 0): 2, (0, 4): 2}  # around the torus
    assert torch.equal(shift(maps(3)), maps(3))  # fewer than five channels stand still


@pytest.mark.parametrize(("channels", "count"), [(3, 0), (11, 3), (11, 11), (48, 12), (192, 48), (200, 100)])
def test_the_absolute_value_with_a_shift_is_both_after_each_other(channels: int, count: int) -> None:
    left, right = maps(channels), maps(channels).flip(0)
    result = absolute_and_shift(left, count)
    assert (lengths(result - absolute_and_shift(right, count)) <= lengths(left - right) * (1 + 1e-12)).all()
    assert torch.equal(result.flatten(1, 2).sort(1).values, partial_absolute(left, count).flatten(1, 2).sort(1).values)
    moves = set()  # of points among channels that have an absolute value, and among those that have none
    for channel in range(channels):
        point = torch.zeros(1, 4, 6, channels)
        point[0, 0, 5, channel] = -1
        moved = absolute_and_shift(point, count)
        place = moved[..., channel].nonzero()
        assert moved.count_nonzero() == 1
        assert moved.sum() == (1 if channel < count else -1)
        moves.add((channel < count, *place[0, 1:].tolist()))
    everywhere = {(0, 5), (1, 5), (3, 5), (0, 0), (0, 4)}
    for absolute, size in ((True, count), (False, channels - count)):
        assert {move[1:] for move in moves if move[0] is absolute} == (
            everywhere if size >= 5 else {(0, 5)} if size else set()
        )


@pytest.mark.parametrize(("channels", "count"), [(2, 2), (8, 2), (22, 6), (24, 8), (192, 48)])
def test_of_pairs_those_without_absolute_value_move_in_four_directions(channels: int, count: int) -> None:
    left, right = maps(channels), maps(channels).flip(0)
    result = absolute_and_shift(left, count, pairs=True)
    assert (lengths(result - absolute_and_shift(right, count, pairs=True)) <= lengths(left - right) * (1 + 1e-12)).all()
    assert torch.equal(result[..., :count], left[..., :count].abs())
    rest = left[..., count:]
    moves = [rest, *(rest.roll(*way) for way in ((1, 1), (-1, 1), (1, 2), (-1, 2)))]
    same = torch.stack([(result[..., count:] == move).all(0).all(0).all(0) for move in moves])
    assert torch.equal(same.sum(0), torch.ones(channels - count, dtype=torch.long))
    still, *moving = same.sum(1).tolist()
    assert len(set(moving)) == 1
    assert all(size % 2 == 0 for size in (still, *moving))
    assert still < 8 or still <= (channels - count) // 4


@pytest.mark.parametrize(("axis", "size"), [(1, (4, 6)), (2, (4, 6)), (1, (1, 6)), (2, (4, 1))])
def test_what_leaves_at_an_edge_comes_into_the_opposite_group_there(axis: int, size: tuple[int, int]) -> None:
    forward, backward = maps(3, size), maps(3, size) + 10
    found = exchanged(forward, backward, axis)
    joined = torch.cat([forward, backward.flip(axis)], axis)  # a way there and back
    there, back = joined.roll(1, axis).chunk(2, axis)
    assert torch.equal(found[0], there)
    assert torch.equal(found[1], back.flip(axis))


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize(("channels", "count"), [(16, 4), (22, 6), (192, 48)])
def test_reflecting_edges_are_an_isometry_that_agrees_with_the_torus_within(
    pairs: bool, channels: int, count: int
) -> None:
    places = torch.arange(24.0 * channels).view(1, 4, 6, channels) + 1
    torus, found = (absolute_and_shift(places, count, pairs, edges) for edges in (False, True))
    assert torch.equal(found.flatten().sort().values, places.flatten())  # every number once
    assert torch.equal(found[:, 1:-1, 1:-1], torus[:, 1:-1, 1:-1])
    assert not torch.equal(found, torus)
    place = (found - 1).long() // channels
    row, column = place // 6, place % 6
    far = (row - torch.arange(4).view(-1, 1, 1)).abs() + (column - torch.arange(6).view(-1, 1)).abs()
    assert far.max() == 1  # nothing comes from the opposite edge


@pytest.mark.parametrize("count", [1, 4, 11])
def test_a_partial_absolute_value_is_a_contraction_number_by_number(count: int) -> None:
    left, right = maps(), maps().flip(0)
    moved = (partial_absolute(left, count) - partial_absolute(right, count)).abs()
    assert (moved <= (left - right).abs()).all()
    assert (partial_absolute(left, count) < 0).any() == (count < 11)
    assert torch.equal(partial_absolute(left, count)[..., count:], left[..., count:])
    assert torch.equal(partial_absolute(left, count)[..., :count], left[..., :count].abs())
    torch.testing.assert_close(lengths(partial_absolute(left, count)), lengths(left), rtol=1e-12, atol=0)


def test_pooling_is_a_contraction_and_has_a_gradient_at_zero() -> None:
    left, right = maps(), maps().flip(0)
    moved = lengths(pooled(left) - pooled(right))
    assert (moved <= lengths(left - right) * (1 + 1e-12)).all()
    torch.testing.assert_close(lengths(pooled(1.5 * left) - pooled(left)), lengths(0.5 * left), rtol=1e-12, atol=0)
    zeros = torch.zeros(1, 2, 2, 3, requires_grad=True)
    pooled(zeros).sum().backward()
    assert torch.equal(zeros.grad, torch.zeros_like(zeros))
    assert pooled(left.bfloat16()).dtype == torch.float32


def test_pooling_over_parts_is_pooling_of_each() -> None:
    left, right = maps(), maps().flip(0)
    result = pooled(left, 2, 3)
    assert result.shape == (5, 2, 3, 11)
    torch.testing.assert_close(result[:, 1, 2], pooled(left[:, 2:, 4:])[:, 0, 0], rtol=1e-12, atol=0)
    assert (lengths(result - pooled(right, 2, 3)) <= lengths(left - right) * (1 + 1e-12)).all()
    torch.testing.assert_close(pooled(pooled(left, 2, 3)), pooled(left), rtol=1e-12, atol=0)


def test_orthogonal_products_are_isometries_and_blocks_contractions(
    trained: LipNeXt, tiny: LipNeXtArchitecture
) -> None:
    # As it is written out: a mirrored one is trained in halves.
    network = tiny.plain(deepcopy(trained).double()).double()
    channels, height, width = tiny.image_shape
    for stage in network.stages:
        stage.rotations.data = polar(stage.rotations.data)
        left, right = maps(channels, (height, width)), maps(channels, (height, width)).flip(0)
        assert (lengths(stage(left) - stage(right)) <= lengths(left - right) * (1 + 1e-12)).all()
        channels, height, width = stage.sizes.width, stage.sizes.height, stage.sizes.breadth
        assert stage(left).shape == (5, height, width, channels)
        stage.sizes = replace(stage.sizes, absolute=0)
        result = lengths(stage(left) - stage(right))
        if stage.sizes.pool == 1:  # else norms, which tell less than what they are norms of
            torch.testing.assert_close(result, lengths(left - right), rtol=1e-12, atol=0)


def test_the_last_layer_has_orthonormal_rows_of_every_part(trained: LipNeXt, tiny: LipNeXtArchitecture) -> None:
    weight = tiny.plain(trained.double()).last.weight.double()
    trained.float()
    torch.testing.assert_close(weight @ weight.T, torch.eye(tiny.feature_dim).double(), rtol=0, atol=1e-6)
    parts = weight.unflatten(1, (tiny.regions**2, -1))
    assert (parts.norm(dim=2) > 1e-3).all()  # each feature has something of each


def test_the_constant_of_a_trained_network_is_nearly_one_by_both_proofs(
    trained: LipNeXt, tiny: LipNeXtArchitecture, exported: tuple[Path, float]
) -> None:
    path, before = exported
    assert abs(before - 1) < 1e-4
    # By singular values of the stored matrices, and by the exported operations, of which some are taken together: that
    # comes to less, but for the room for rounding of each.
    assert -1e-6 < singular_value_product(tiny.plain(trained)) - before < 1e-5
    encoder = LipschitzEncoder(path)
    assert encoder.constant <= 1.000001
    assert encoder.architecture == tiny
    # The network as it was trained, off the manifold by what two steps leave, is not far from it either.
    assert singular_value_product(trained) == pytest.approx(1, abs=1e-4)


def test_what_is_exported_is_what_was_trained(
    trained: LipNeXt, tiny: LipNeXtArchitecture, exported: tuple[Path, float]
) -> None:
    images = torch.rand(20, *tiny.image_shape)
    torch.testing.assert_close(LipschitzEncoder(exported[0])(images), trained(images), rtol=1e-4, atol=1e-5)


def test_no_attack_on_a_thousand_pairs_finds_a_slope_above_the_constant(
    tiny: LipNeXtArchitecture, exported: tuple[Path, float]
) -> None:
    torch.manual_seed(0)
    encoder = LipschitzEncoder(exported[0]).double()
    left = torch.rand(1000, *tiny.image_shape, dtype=torch.float64).requires_grad_()
    right = (left.detach() + 0.1 * torch.randn_like(left)).requires_grad_()
    optimizer = torch.optim.Adam([left, right], lr=0.02)
    best = torch.zeros(1000, dtype=torch.float64)
    for _ in range(60):
        distance = lengths(left - right)
        slope = lengths(encoder(left) - encoder(right)) / distance
        best = torch.where(distance > 1e-3, best.maximum(slope.detach()), best)
        optimizer.zero_grad()
        (-slope.sum()).backward()
        optimizer.step()
    assert 0.9 < float(best.max()) <= encoder.constant  # the attack has teeth, and the constant holds


@pytest.mark.parametrize("name", ["stages.0.rotations", "last.weight"])
def test_altered_matrices_are_refused(
    exported: tuple[Path, float], tiny: LipNeXtArchitecture, name: str, tmp_path: Path
) -> None:
    state = load_file(exported[0])
    state[name].view(-1)[0] += 0.01
    metadata = {"lipschitz_architecture": json.dumps(tiny.to_record())}
    save_file(state, tmp_path / "altered.safetensors", metadata)
    with pytest.raises(ValueError, match="Lipschitz constant of at most 1"):
        LipschitzEncoder(tmp_path / "altered.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"products": 1},
        {"products": 1, "absolute_share": 0.1},
        {"absolute_share": 1.0},
        {"products": 1, "absolute_share": 1.0},
        {"patches": (2, 1), "pools": (1, 2), "products": 1},
        {"patches": (1, 2), "pools": (2, 1)},
        {"patches": (2, 1), "pools": (1, 2), "feature_dim": 8, "image_shape": (2, 8, 16), "regions": 2},
        {"patches": (2, 1), "widths": (10, 42), "products": 1, "mirrored": True},
        {"products": 1, "reflecting": True},
        {"patches": (2, 1), "widths": (10, 42), "products": 1, "mirrored": True, "reflecting": True},
    ],
    ids=str,
)
def test_a_network_of_two_stages_is_proven_whatever_its_weights_are(changes: dict[str, Any]) -> None:
    torch.manual_seed(1)
    architecture = replace(TWO_STAGES, **changes)
    plain = architecture.build().eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    constant = prove(plain, architecture)
    product = singular_value_product(plain)
    # Operations that are taken together come to less. The mirrored network has none that do, and 1e-7 of room for
    # rounding where its pairs are moved before they are pooled.
    assert 1.5 < constant <= product * (1 + 1e-6 * architecture.mirrored)
    each = SpectralProduct(dense_limit=1).constant(plain, torch.zeros(1, *architecture.image_shape))
    assert each == pytest.approx(product, rel=1e-8)
    wide = plain.double()
    left, right = torch.rand(2, 50, *architecture.image_shape, dtype=torch.float64)
    assert (lengths(wide(left) - wide(right)) <= constant * lengths(left - right)).all()
    assert wide(left).shape == (50, architecture.feature_dim)


def test_a_file_keeps_the_architecture_and_others_are_refused(
    exported: tuple[Path, float], tiny: LipNeXtArchitecture, tmp_path: Path
) -> None:
    assert read_architecture(exported[0]) == tiny
    assert LipNeXtArchitecture.from_record(json.loads(json.dumps(TWO_STAGES.to_record()))) == TWO_STAGES
    state = load_file(exported[0])
    for changed in ({"kind": "other"}, {"widths": None}, {"patches": [3]}, {"absolute_share": "x"}):
        metadata = {"lipschitz_architecture": json.dumps({**tiny.to_record(), **changed})}
        save_file(state, tmp_path / "other.safetensors", metadata)
        with pytest.raises(ValueError, match="state the architecture"):
            LipschitzEncoder(tmp_path / "other.safetensors")


def test_a_file_from_before_blocks_of_one_product_is_read(tmp_path: Path) -> None:
    network, path = TINY.trainable(), tmp_path / "encoder.safetensors"
    export_encoder(network, TINY, path)
    record = TINY.to_record()
    names = ("products", "pools", "regions", "mirrored", "reflecting")
    assert [record.pop(name) for name in names] == [2, (), 1, False, False]
    save_file(load_file(path), path, {"lipschitz_architecture": json.dumps(record)})
    assert LipschitzEncoder(path).architecture == TINY


def test_networks_of_the_same_weights_are_told_apart_by_what_they_do_with_them(tmp_path: Path) -> None:
    first = LipNeXtArchitecture((1, 8, 8), (2, 2), (9, 40), (1, 1), feature_dim=8)
    path, found = tmp_path / "encoder.safetensors", {}
    export_encoder(first.trainable(), first, path)
    state = load_file(path)
    images = torch.rand(4, 1, 8, 8)
    for changes in ({}, {"absolute_share": 0.3}, {"absolute_share": 0.9}, {"patches": (2, 1), "pools": (1, 2)}):
        save_file(state, path, {"lipschitz_architecture": json.dumps(replace(first, **changes).to_record())})
        encoder = FrozenEncoder(LipschitzEncoder(path))
        found[encoder.fingerprint()["architecture"]] = encoder.encode(images)
    plain = "ellips.lipschitz.encoder.LipschitzEncoder"  # as it always was
    told = [f"{plain}({what})" for what in ("absolute_share=0.3", "absolute_share=0.9", "pools=(1, 2)")]
    assert list(found) == [plain, *told]
    features = list(found.values())
    assert all(not torch.allclose(features[0], other) for other in features[1:])


def test_networks_that_differ_in_their_edges_alone_are_told_apart(tmp_path: Path) -> None:
    path, found = tmp_path / "encoder.safetensors", {}
    first = KINDS["one_product"]
    export_encoder(first.trainable(), first, path)
    state, images = load_file(path), torch.rand(4, *first.image_shape)
    for reflecting in (False, True):
        architecture = replace(first, reflecting=reflecting)
        save_file(state, path, {"lipschitz_architecture": json.dumps(architecture.to_record())})
        encoder = FrozenEncoder(LipschitzEncoder(path))
        found[encoder.fingerprint()["architecture"]] = encoder.encode(images)
    assert [", reflecting=True)" in name for name in found] == [False, True]
    assert not torch.allclose(*found.values())


@pytest.mark.parametrize(
    "arguments",
    [
        {"patches": (4, 2)},
        {"patches": (3,)},
        {"widths": (32,)},
        {"depths": (0,)},
        {"absolute_share": 0.0},
        {"products": 3},
        {"pools": (2, 2)},
        {"pools": (0,)},
        {"pools": (3,)},
        {"regions": 0},
        {"regions": 3},
        {"regions": 2, "feature_dim": 66},
        {"feature_dim": 193},
        {"mirrored": True},
        {"reflecting": True},
        {"mirrored": True, "products": 1, "patches": (1,)},
        {"mirrored": True, "products": 1, "widths": (191,)},
        {"mirrored": True, "products": 1, "feature_dim": 97},
        {"mirrored": True, "products": 1, "regions": 2},
        {"mirrored": True, "products": 1, "pools": (2,)},
        {"mirrored": True, "products": 1, "patches": (2, 2), "widths": (12, 192), "depths": (1, 1)},
        {"image_shape": (3, 30, 32)},
    ],
    ids=str,
)
def test_impossible_architectures_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        LipNeXtArchitecture(**arguments)  # type: ignore[arg-type]


def test_other_networks_are_refused() -> None:
    with pytest.raises(TypeError, match="LipNeXt"):
        TINY.plain(nn.Identity())

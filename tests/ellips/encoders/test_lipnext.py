from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ellips.encoders import FrozenEncoder, LipNeXt, LipNeXtArchitecture, LipschitzEncoder, OrthogonalMuon
from ellips.encoders.lipnext import partial_absolute, pooled, shift, singular_value_product, space_to_depth
from ellips.encoders.lipschitz import export_encoder, prove, read_architecture
from ellips.encoders.orthogonal import polar
from ellips.lipschitz import SpectralProduct

TINY = LipNeXtArchitecture((1, 4, 4), (2,), (11,), (2,), 0.3, 6)
TWO_STAGES = LipNeXtArchitecture((2, 8, 4), (2, 2), (9, 40), (1, 2), 0.5, 7)


def maps(channels: int = 11, size: tuple[int, int] = (4, 6)) -> Tensor:
    return torch.randn(5, *size, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def lengths(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)


@pytest.fixture(scope="module")
def trained() -> LipNeXt:
    """A tiny network after some steps, with positions that are not zero."""
    torch.manual_seed(0)
    network = TINY.trainable()
    matrices = TINY.manifold(network)
    others = [stage.positions for stage in network.stages]
    optimizer = OrthogonalMuon([{"params": matrices, "orthogonal": True}, {"params": others}], lr=0.03)
    images, labels = torch.rand(40, 1, 4, 4), torch.arange(40) % 6
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
def exported(trained: LipNeXt, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    return path, export_encoder(trained, TINY, path)


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


def test_orthogonal_products_are_isometries_and_blocks_contractions(trained: LipNeXt) -> None:
    stage = trained.stages[0].double()
    stage.rotations.data = polar(stage.rotations.data)
    left, right = maps(1, (4, 4)), maps(1, (4, 4)).flip(0)
    try:
        assert (lengths(stage(left) - stage(right)) <= lengths(left - right) * (1 + 1e-12)).all()
        stage.absolute, before = 0, stage.absolute
        stage.positions.data, positions = torch.zeros(2, 2, 2, 11).double(), stage.positions.data
        torch.testing.assert_close(lengths(stage(left) - stage(right)), lengths(left - right), rtol=1e-12, atol=0)
        stage.absolute, stage.positions.data = before, positions
    finally:
        trained.float()


def test_the_constant_of_a_trained_network_is_nearly_one_by_both_proofs(
    trained: LipNeXt, exported: tuple[Path, float]
) -> None:
    path, before = exported
    assert abs(before - 1) < 1e-4
    # By singular values of the stored matrices, and by the exported operations, of which some are taken together.
    assert 0 <= singular_value_product(TINY.plain(trained)) - before < 1e-5
    encoder = LipschitzEncoder(path)
    assert encoder.constant <= 1.000001
    assert encoder.architecture == TINY
    # The network as it was trained, off the manifold by what two steps leave, is not far from it either.
    assert singular_value_product(trained) == pytest.approx(1, abs=1e-4)


def test_what_is_exported_is_what_was_trained(trained: LipNeXt, exported: tuple[Path, float]) -> None:
    images = torch.rand(20, 1, 4, 4)
    torch.testing.assert_close(LipschitzEncoder(exported[0])(images), trained(images), rtol=1e-4, atol=1e-5)


def test_no_attack_on_a_thousand_pairs_finds_a_slope_above_the_constant(exported: tuple[Path, float]) -> None:
    torch.manual_seed(0)
    encoder = LipschitzEncoder(exported[0]).double()
    left = torch.rand(1000, 1, 4, 4, dtype=torch.float64).requires_grad_()
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
def test_altered_matrices_are_refused(exported: tuple[Path, float], name: str, tmp_path: Path) -> None:
    state = load_file(exported[0])
    state[name].view(-1)[0] += 0.01
    metadata = {"lipschitz_architecture": json.dumps(TINY.to_record())}
    save_file(state, tmp_path / "altered.safetensors", metadata)
    with pytest.raises(ValueError, match="Lipschitz constant of at most 1"):
        LipschitzEncoder(tmp_path / "altered.safetensors")


def test_a_network_of_two_stages_is_proven_whatever_its_weights_are() -> None:
    torch.manual_seed(1)
    plain = TWO_STAGES.build().eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    constant = prove(plain, TWO_STAGES)
    product = singular_value_product(plain)
    assert 1.5 < constant <= product  # operations that are taken together come to less
    each = SpectralProduct(dense_limit=1).constant(plain, torch.zeros(1, 2, 8, 4))
    assert each == pytest.approx(product, rel=1e-8)
    wide = plain.double()
    left, right = torch.rand(2, 50, 2, 8, 4, dtype=torch.float64)
    assert (lengths(wide(left) - wide(right)) <= constant * lengths(left - right)).all()
    assert wide(left).shape == (50, 7)


def test_a_file_keeps_the_architecture_and_others_are_refused(exported: tuple[Path, float], tmp_path: Path) -> None:
    assert read_architecture(exported[0]) == TINY
    assert LipNeXtArchitecture.from_record(json.loads(json.dumps(TWO_STAGES.to_record()))) == TWO_STAGES
    state = load_file(exported[0])
    for changed in ({"kind": "other"}, {"widths": None}, {"patches": [3]}, {"absolute_share": "x"}):
        metadata = {"lipschitz_architecture": json.dumps({**TINY.to_record(), **changed})}
        save_file(state, tmp_path / "other.safetensors", metadata)
        with pytest.raises(ValueError, match="state the architecture"):
            LipschitzEncoder(tmp_path / "other.safetensors")


def test_networks_that_differ_in_their_absolute_values_alone_are_told_apart(
    exported: tuple[Path, float], tmp_path: Path
) -> None:
    path, found = tmp_path / "other.safetensors", set()
    for share in (0.25, 0.3, 0.9):
        record = {**TINY.to_record(), "absolute_share": share}
        save_file(load_file(exported[0]), path, {"lipschitz_architecture": json.dumps(record)})
        found.add(FrozenEncoder(LipschitzEncoder(path)).fingerprint()["architecture"])
    plain = "ellips.lipschitz.encoder.LipschitzEncoder"  # as it always was
    assert found == {plain, f"{plain}(absolute_share=0.3)", f"{plain}(absolute_share=0.9)"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"patches": (4, 2)},
        {"patches": (3,)},
        {"widths": (32,)},
        {"depths": (0,)},
        {"absolute_share": 0.0},
        {"feature_dim": 193},
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

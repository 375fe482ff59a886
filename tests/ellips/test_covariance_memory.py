"""How much is held beside a mixture of many wide classes while it is fitted, certifies and is checked.

Of a mixture of K full covariances in d dimensions T = K d² · 8 bytes are stored. What is made of all of them at once
takes T, too, so every tensor that is made is looked at here, however briefly it is there.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ellips import ClassMoments, Ellips, EllipsHead
from ellips.certificates import METHODS, check, pairs, verify, verify_low_rank
from ellips.certificates import geometry as geometries
from ellips.certificates.check import Prover
from ellips.certificates.geometries import geometry_of
from ellips.certificates.geometry import Geometry
from ellips.files import load_certificates, save_certificates
from ellips.gaussians import structures
from ellips.regularization_search import RegularizationSearch, select_regularization
from tests.ellips.mixtures import random_mixture, random_points

CLASSES, DIM = 30, 12
T = CLASSES * DIM**2 * 8


class Large(TorchDispatchMode):
    """Notes every storage of at least half of T that an operation makes; in-place results and views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        given = {x.untyped_storage().data_ptr() for x in torch.utils._pytree.tree_leaves((args, kwargs)) if _is(x)}
        result = func(*args, **(kwargs or {}))
        for x in filter(_is, torch.utils._pytree.tree_leaves(result)):
            storage = x.untyped_storage()
            if storage.nbytes() >= T / 2 and storage.data_ptr() not in given:
                self.made.append((str(func), storage.nbytes() / T))
        return result


def _is(x: object) -> bool:
    return isinstance(x, Tensor)


@pytest.fixture
def many() -> Iterator[None]:
    """Let a small mixture count as one of many wide classes."""
    with (
        mock.patch.object(structures, "_RANGE_ELEMENTS", 2 * DIM**2),
        mock.patch.object(structures, "_TILE_ELEMENTS", 2 * DIM * structures.TILE_ROWS),
        mock.patch("ellips.gaussians.fingerprint._CHUNK", 2 * DIM),
        mock.patch.object(geometries, "_KEPT_ELEMENTS", 0),
        mock.patch.object(pairs, "_KEPT_ELEMENTS", 5 * DIM**2),
        mock.patch.object(pairs, "_BATCH_ELEMENTS", 2 * DIM**2),
        mock.patch.object(verify, "KEPT", 0),
        mock.patch.object(verify_low_rank, "KEPT", 0),
        mock.patch.object(Geometry, "affordable", False),
    ):
        yield


def mixture() -> Ellips:
    return random_mixture("full", CLASSES, DIM, seed=3, spread=0.6)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("pooling", [0.0, 0.4])
def test_a_fit_holds_moments_and_mixture_alone(pooling: float) -> None:
    z, labels = mixture().sample(600, torch.Generator().manual_seed(0))
    labels[:CLASSES] = torch.arange(CLASSES)
    moments = ClassMoments(CLASSES, DIM)
    moments.update(z, labels)
    ellips = Ellips(CLASSES, DIM, pooling=pooling, shrinkage=0.2)
    with Large() as seen:
        ellips.fit_collected(moments.held())
    assert seen.made == []
    with Large() as seen:
        whole = torch.eye(2).repeat(CLASSES * DIM, DIM)
    assert len(seen.made) == 1  # the attempt has teeth
    assert len(whole) == 2 * CLASSES * DIM


@pytest.mark.usefixtures("many")
def test_certificates_hold_precisions_once_in_half_the_bytes() -> None:
    ellips, points = mixture(), random_points(mixture(), 4)
    with Large() as seen:
        for method in METHODS:
            ellips.certify(points, method)
        ellips(points)
        assert ellips.scale > 0
        assert ellips.digest()
    assert [size for _, size in seen.made] == [0.5]


@pytest.mark.usefixtures("many")
def test_a_check_holds_the_stored_numbers_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # What asks every thread for subnormals takes half a megabyte, whatever the mixture's size.
    monkeypatch.setattr(sys.modules[Prover.__module__], "require_subnormals", lambda: None)
    ellips, points = mixture(), random_points(mixture(), 4)
    certificate = ellips.certify(points)
    with Large() as seen:
        assert check(ellips, points, certificate).all()
    assert [size for _, size in seen.made] == [1.0]


@pytest.mark.parametrize("kind", ["full", "shared"])
def test_nothing_depends_on_what_is_kept(kind: str, many: None) -> None:
    kept = random_mixture(kind, 7, 5, seed=1, spread=0.6)
    points = random_points(kept, 40)
    few = Ellips(7, 5)
    few.load_state_dict(kept.state_dict())
    found = {method: few.certify(points, method) for method in METHODS}
    with mock.patch.object(geometries, "_KEPT_ELEMENTS", 10**6), mock.patch.object(pairs, "_KEPT_ELEMENTS", 10**6):
        for method in METHODS:
            expected = kept.certify(points, method)
            torch.testing.assert_close(found[method].radius, expected.radius, rtol=1e-9, atol=1e-12)
    assert check(few, points, found["exact"]).all()


def test_pairs_that_are_kept_at_once_are_few_though_many_are_asked_for() -> None:
    ellips, points = random_mixture("full", 9, 4, seed=2, spread=0.3), torch.zeros(36, 4).double()
    low, high = torch.triu_indices(9, 9, 1)
    problem = (torch.ones(36).double(), low, high)
    expected = geometry_of(ellips).pairs.problems(points, torch.arange(36), *problem)
    with mock.patch.object(pairs, "_KEPT_ELEMENTS", 7 * 16):
        few = geometry_of(random_mixture("full", 9, 4, seed=2, spread=0.3)).pairs
        parts = few.portions(low, high)
        assert sorted(torch.cat(parts).tolist()) == list(range(36))
        assert max(map(len, parts)) == 7
        for rows in parts:
            found, order = few.problems(points, rows, *(column[rows] for column in problem))
            assert len(few) <= 7
            again = torch.empty_like(found.concavity)
            again[order] = found.concavity
            whole = torch.empty_like(expected[0].concavity)
            whole[expected[1]] = expected[0].concavity
            torch.testing.assert_close(again, whole[rows], rtol=1e-12, atol=1e-14)


def test_a_kernel_that_keeps_no_precisions_proves_nothing_by_itself() -> None:
    """Only the one that makes them anew may be used then."""
    ellips, points = random_mixture("full", 3, 4), random_points(random_mixture("full", 3, 4), 5)
    certificate = ellips.certify(points)
    with mock.patch.object(verify, "KEPT", 0), pytest.raises(RuntimeError, match="index"):
        Prover(ellips).check(points, certificate)


@pytest.mark.parametrize("dim", [3, 24])
def test_precisions_that_are_made_anew_give_the_same_proofs(dim: int) -> None:
    ellips = random_mixture("full", 5, dim, seed=dim, spread=0.4)
    points = random_points(ellips, 30)
    plain = verify.Kernel(ellips)
    with mock.patch.object(verify, "KEPT", 0):
        wide = verify_low_rank.WideKernel(ellips)
    pair = torch.randint(0, 5, (2, 30), generator=torch.Generator().manual_seed(0))
    away = points - ellips.means[pair]
    (matrix, pull), (expected, expected_pull) = wide._written(pair, away), plain._written(pair, away)
    torch.testing.assert_close(matrix, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(pull, expected_pull, rtol=1e-12, atol=1e-12)
    certificate = ellips.certify(points)
    prover = Prover(ellips)
    prover._kernel = wide
    for factor in (1.0, 1 + 1e-6, 1.1):
        claim = certificate.map(torch.clone)
        claim.radius.mul_(factor)
        assert torch.equal(prover.check(points, claim), Prover(ellips).check(points, claim))


@pytest.mark.usefixtures("many")
def test_a_singular_class_is_named_by_its_own_number_and_leaves_no_half_a_mixture() -> None:
    z, labels = mixture().sample(2000, torch.Generator().manual_seed(0))
    labels = torch.arange(2000) % CLASSES
    ellips = Ellips(CLASSES, DIM).fit(z, labels)
    z[labels == 17, 3] = 0.5
    with pytest.raises(ValueError, match=r"covariance of class 17 to be positive definite"):
        ellips.fit(z, labels)
    assert not ellips.is_fitted
    with pytest.raises(ValueError, match="class 4 had none"):
        Ellips(CLASSES, DIM).fit(z, labels.masked_fill(labels == 4, 3))


def test_numbers_above_the_diagonal_count_for_nothing() -> None:
    ellips, points = random_mixture("full", 4, 5), random_points(random_mixture("full", 4, 5), 20)
    other = Ellips(4, 5)
    other.load_state_dict(ellips.state_dict())
    other.precision_factors += torch.ones(5, 5).double().triu(1)
    assert torch.equal(other(points), ellips(points))
    assert other.digest() == ellips.digest()
    assert torch.equal(other.certify(points).radius, ellips.certify(points).radius)
    assert torch.equal(other.factors, ellips.factors)
    torch.testing.assert_close(other.scale, ellips.scale)


def test_the_digest_is_that_of_the_bytes_in_a_row() -> None:
    """What earlier versions wrote down stays true."""
    for kind in ("full", "diagonal"):
        ellips = random_mixture(kind, 3, 4)
        sha = hashlib.sha256(f"ellips-1 {kind} 3 4\n".encode())
        for tensor in (ellips.means, ellips.factors, ellips.log_priors):
            sha.update(tensor.contiguous().numpy().astype("<f8").tobytes())
        assert ellips.digest() == sha.hexdigest()


def test_a_file_of_certificates_is_readable_by_whom_other_files_are(tmp_path: Path) -> None:
    ellips, points = random_mixture("full", 3, 4), random_points(random_mixture("full", 3, 4), 5)
    path = save_certificates(tmp_path / "a.safetensors", ellips.certify(points), points, ellips)
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    assert load_certificates(path).ellips.digest() == ellips.digest()


def test_a_search_tries_settings_on_one_mixture() -> None:
    head = EllipsHead(DIM, CLASSES, None, shrinkage=0.3)
    z, labels = mixture().sample(900, torch.Generator().manual_seed(0))
    labels[:CLASSES] = torch.arange(CLASSES)
    head.update(z, labels)
    search = RegularizationSearch(0.1, pooling=(0.0, 0.5), shrinkage=(0.1, 0.4))
    moments = head.moments.held()
    found, _ = select_regularization(moments, z[:50], labels[:50], search, ellips=head.ellips)
    expected, _ = select_regularization(moments, z[:50], labels[:50], search)
    assert found == expected
    assert head.ellips.is_fitted  # with the last of the settings that were tried

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ellips import Ellips, EllipsHead
from ellips.gaussians import ClassMoments, ClassSketch, Mixture, Moments, Regularization, collector, sketch
from tests.processes import run_together

SETTINGS = [(0.0, 0.0), (0.3, 0.2), (0.0, 0.4)]


def data(n: int = 3000, classes: int = 5, dim: int = 10) -> tuple[Tensor, Tensor]:
    """Classes that differ from a common covariance in two directions each, and a little in all others."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(n) % classes
    root, turn = torch.eye(dim) + 0.3 * normal(dim, dim), torch.linalg.qr(normal(classes, dim, dim))[0]
    spread = torch.ones(classes, dim, dtype=torch.float64)
    spread[:, 0], spread[:, 1] = 2.0, 0.5
    x = ((normal(n, dim) * spread[labels]).unsqueeze(1) @ turn[labels]).squeeze(1)
    return x @ root.T + normal(classes, dim)[labels], labels


def low_rank(rank: int, pooling: float = 0.0, shrinkage: float = 0.0, dim: int = 10) -> Mixture:
    return Mixture(5, dim, covariance_type="low_rank", rank=rank, pooling=pooling, shrinkage=shrinkage)


def collected(z: Tensor, labels: Tensor, rank: int, batch: int = 500) -> ClassSketch:
    found = ClassSketch(5, z.shape[1], rank)
    for _ in range(found.passes):
        for rows, some in zip(z.split(batch), labels.split(batch), strict=True):
            found.update(rows, some)
        found.end_pass()
    return found


@pytest.mark.parametrize(("pooling", "shrinkage"), SETTINGS)
def test_every_direction_is_the_full_model_and_none_the_pooled_one(pooling: float, shrinkage: float) -> None:
    z, labels = data()
    for rank, oracle in ((10, Mixture(5, 10, pooling=pooling, shrinkage=shrinkage)), (0, None)):
        found = low_rank(rank, pooling, shrinkage).fit(z, labels)
        expected = (oracle or Mixture(5, 10, pooling=1.0, shrinkage=shrinkage)).fit(z, labels)
        for name in ("covariances", "precisions", "log_dets", "offsets", "scale"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found(z), expected(z), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.log_prob(z), expected.log_prob(z), rtol=1e-9, atol=1e-9)


def test_the_cut_keeps_what_differs_most() -> None:
    """Of all models of rank r the whitened class covariances are nearest: as by a decomposition of each one."""
    z, labels = data()
    full, pooled = Mixture(5, 10).fit(z, labels), Mixture(5, 10, pooling=1.0).fit(z, labels)
    factor = pooled.factors[0]
    for rank in (1, 2, 7):
        found = low_rank(rank).fit(z, labels)
        for k in range(5):
            change = factor @ full.covariances[k] @ factor.T - torch.eye(10)
            left = change - (factor @ found.covariances[k] @ factor.T - torch.eye(10))
            expected = torch.linalg.eigvalsh(change).abs().sort(descending=True).values[rank:].square().sum()
            assert float(left.square().sum()) == pytest.approx(float(expected), rel=1e-8)


def test_written_out_parts_agree() -> None:
    mixture, generator = low_rank(3).fit(*data()), torch.Generator().manual_seed(1)
    structure, k = mixture.structure, torch.arange(40) % 5
    v = torch.randn(40, 10, generator=generator, dtype=torch.float64)
    product = (mixture.precisions[k] @ v.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(structure.pull(v, k), product)
    torch.testing.assert_close(structure.energy(v, k), (product * v).sum(1))
    torch.testing.assert_close(mixture.factors.mT @ mixture.factors, mixture.precisions)
    torch.testing.assert_close(mixture.covariances @ mixture.precisions, torch.eye(10).double().expand(5, 10, 10))
    torch.testing.assert_close(mixture.log_dets, torch.logdet(mixture.covariances))
    torch.testing.assert_close(structure.traces(), mixture.covariances.diagonal(dim1=1, dim2=2).sum(1))


def test_samples_follow_the_density() -> None:
    mixture = low_rank(3).fit(*data())
    z, labels = mixture.sample(200_000, torch.Generator().manual_seed(0))
    for k in range(5):
        own = z[labels == k]
        torch.testing.assert_close(own.mean(0), mixture.means[k], atol=0.05, rtol=0)
        torch.testing.assert_close(own.T.cov(), mixture.covariances[k], atol=0.12, rtol=0.03)


def test_means_far_from_the_origin_cost_no_digits() -> None:
    z, labels = data()
    near, far = low_rank(3).fit(z, labels), low_rank(3).fit(z + 1e6, labels)
    torch.testing.assert_close(far(z + 1e6), near(z), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 10])
def test_a_sketch_gives_what_scatters_give(rank: int) -> None:
    """In 10 dimensions the sketch sees everything; nothing is missed."""
    z, labels = data()
    found = collected(z, labels, rank).compute()
    torch.testing.assert_close(found.missed, torch.zeros(5).double(), atol=1e-12, rtol=0)
    for pooling, shrinkage in SETTINGS:
        expected = low_rank(rank, pooling, shrinkage).fit(z, labels)
        torch.testing.assert_close(
            low_rank(rank, pooling, shrinkage).fit_collected(found)(z), expected(z), rtol=1e-8, atol=1e-8
        )


def test_a_sketch_of_wide_latents_finds_the_leading_directions_and_says_what_it_misses() -> None:
    z, labels = data(40_000, dim=60)
    moments = ClassMoments(5, 60)
    moments.update(z, labels)
    exact = low_rank(2, dim=60).fit_collected(moments.compute())
    found = collected(z, labels, 2, 10_000).compute()
    assert found.core.shape == (5, 12, 12)
    sketched = low_rank(2, dim=60).fit_collected(found)
    kept = [m.structure.widths.square().sum(1) for m in (exact, sketched)]  # type: ignore[union-attr]
    whole = low_rank(60, dim=60).fit_collected(moments.compute()).structure.widths.square().sum(1)  # type: ignore[union-attr]
    assert (kept[1] > 0.85 * kept[0]).all()
    assert (kept[1] <= kept[0] * (1 + 1e-9)).all()
    # What lies outside of the sketch bounds what it has lost, up to the error of its own estimate.
    assert (kept[0] - kept[1] <= 2 * found.missed * whole).all()
    assert (found.missed > 0).all()
    assert (found.missed < 0.5).all()
    with pytest.raises(ValueError, match="rank up to 12"):
        low_rank(20, dim=60).fit_collected(found)


def test_batches_do_not_matter_and_passes_are_counted() -> None:
    z, labels = data(600)
    whole, cut = collected(z, labels, 3, 600).compute(), collected(z, labels, 3, 7).compute()
    for name in ("count", "mean", "scatter", "square", "missed"):
        torch.testing.assert_close(getattr(cut, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    first, second = (low_rank(3).fit_collected(found)(z) for found in (whole, cut))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    unfinished = ClassSketch(5, 10, 3)
    unfinished.update(z, labels)
    unfinished.end_pass()
    with pytest.raises(ValueError, match="3 passes"):
        unfinished.compute()
    unfinished.reset()
    for _ in range(3):
        unfinished.update(z, labels)
        unfinished.end_pass()
    torch.testing.assert_close(unfinished.compute().scatter, whole.scatter)
    with pytest.raises(ValueError, match="a fourth"):
        unfinished.update(z, labels)


def in_two_processes(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    z, labels = data(600)
    mine = (torch.arange(600) % 3 == 0) if rank == 0 else (torch.arange(600) % 3 != 0)
    mine &= (labels != 4) | torch.tensor(rank == 1)  # one process never sees the last class
    found = collected(z[mine], labels[mine], 3, 50).compute()
    torch.save(found._asdict(), folder / f"{rank}.pt")


def test_two_processes_collect_what_one_does(tmp_path: Path) -> None:
    run_together(in_two_processes, tmp_path)
    z, labels = data(600)
    seen = (labels != 4) | (torch.arange(600) % 3 != 0)
    expected = collected(z[seen], labels[seen], 3).compute()
    for rank in range(2):
        found = sketch.SketchedMoments(**torch.load(tmp_path / f"{rank}.pt"))
        for name in ("count", "mean", "scatter", "square"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
        one, other = (low_rank(3).fit_collected(x)(z) for x in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_head_sketches_where_scatters_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = data()
    settings = {"latent_dim": None, "covariance_type": "low_rank", "rank": 3, "shrinkage": 0.1}
    small = EllipsHead(10, 5, **settings).fit(z, labels)  # type: ignore[arg-type]
    assert isinstance(small.moments, ClassMoments)
    monkeypatch.setattr(sketch, "_FULL_ELEMENTS", 0)
    large = EllipsHead(10, 5, **settings).fit(z, labels, batch_size=100)  # type: ignore[arg-type]
    assert isinstance(large.moments, ClassSketch)
    torch.testing.assert_close(large(z), small(z), rtol=1e-8, atol=1e-8)
    again = EllipsHead(**large.config)
    again.load_state_dict(large.state_dict())
    torch.testing.assert_close(again(z), large(z), rtol=0, atol=0)
    assert collector(5, 10, "diagonal").compute().scatter.ndim == 2


def test_the_state_the_digest_and_copies_are_whole() -> None:
    z, labels = data()
    mixture = low_rank(3).fit(z, labels)
    other = low_rank(3)
    other.load_state_dict(mixture.state_dict())
    assert other.digest() == mixture.digest() == copy.deepcopy(mixture).digest()
    for name in ("means", "precision_factors", "directions", "scales", "log_priors"):
        changed = copy.deepcopy(mixture)
        getattr(changed, name).flatten()[0].add_(1e-9)
        assert changed.digest() != mixture.digest()
    assert mixture.half().scales.dtype == torch.float64
    assert "rank=3" in repr(mixture)


def test_a_trained_mixture_has_gradients_that_are_right() -> None:
    mixture = low_rank(3).fit(*data()).trainable_()
    z = data(4)[0].requires_grad_()
    names = [name for name, _ in mixture.named_parameters()]
    assert set(names) == {"means", "precision_factors", "scales", "log_priors"}

    def scores(z: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        found: Tensor = torch.func.functional_call(mixture, parameters, (z,))
        return found

    assert torch.autograd.gradcheck(scores, (z, *(p for _, p in mixture.named_parameters())))


def test_what_does_not_fit_is_refused() -> None:
    z, labels = data()
    for kind, rank, message in (
        ("low_rank", None, "from 0 to"),
        ("low_rank", 11, "from 0 to"),
        ("full", 2, "no `rank`"),
    ):
        with pytest.raises(ValueError, match=message):
            Mixture(5, 10, covariance_type=kind, rank=rank)  # type: ignore[arg-type]
    few = torch.cat([z[labels == k][: 4 if k == 2 else 200] for k in range(5)])
    whose = torch.cat([labels[labels == k][: 4 if k == 2 else 200] for k in range(5)])
    low_rank(3, 0.5).fit(few, whose)
    with pytest.raises(ValueError, match=r"class 2 .*shrinkage"):
        low_rank(3).fit(few, whose)
    with pytest.raises(ValueError, match="class 1"):
        low_rank(3).fit(z[labels != 1], labels[labels != 1])
    with pytest.raises(ValueError, match="common covariance"):
        low_rank(3).fit(torch.cat([z[:, :9], z[:, :1]], dim=1), labels)
    with pytest.raises(ValueError, match="but got a sketch"):
        Mixture(5, 10).fit_collected(collected(z, labels, 3).compute())


def test_parameters_are_checked() -> None:
    eye, q = torch.eye(3), torch.eye(3)[:2].expand(2, 2, 3).clone()
    good = {"means": torch.zeros(2, 3), "covariance": eye, "directions": q, "widths": torch.full((2, 2), -0.5)}
    priors = torch.tensor([0.5, 0.5])
    mixture = Ellips.from_low_rank(**good, priors=priors)
    torch.testing.assert_close(mixture.covariances[0], torch.tensor([0.5, 0.5, 1.0]).diag().double())
    for name, value, message in (
        ("directions", 1.1 * q, "orthonormal"),
        ("directions", q[:, :1].expand(2, 2, 3), "orthonormal"),
        ("directions", q[..., :2], "shape"),
        ("widths", torch.full((2, 2), -1.0), "above -1"),
        ("widths", torch.full((2, 2), torch.nan), "finite"),
        ("covariance", -eye, "positive definite"),
    ):
        with pytest.raises(ValueError, match=message):
            Ellips.from_low_rank(**{**good, name: value}, priors=priors)


def test_regularisation_is_of_the_moments_that_are_kept() -> None:
    z, labels = data()
    moments = ClassMoments(5, 10)
    moments.update(z, labels)
    found = low_rank(3, 0.3, 0.2).fit_moments(*moments.compute())
    assert found.regularization == Regularization(0.3, 0.2)
    assert isinstance(moments.compute(), Moments)
    torch.testing.assert_close(found(z), low_rank(3, 0.3, 0.2).fit(z, labels)(z))

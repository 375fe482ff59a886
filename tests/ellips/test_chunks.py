"""As many samples at once as memory takes, with the same results whatever their number."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ellips import EllipsHead, FrozenEncoder, ImageClassifier, chunks
from ellips.certificates import Certificate
from ellips.chunks import SHARE, Chunks, ChunkSize
from ellips.input_certifiers import ByConstant, InputCertifier, MarginClever, SmoothedDecision, SmoothedEncoder
from ellips.lipschitz import Clever, JacobianNorm
from ellips.settings import describe

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FEW = {"num_batches": 30, "num_samples": 10}  # more points than are drawn at once
CERTIFIERS: dict[str, Callable[[ChunkSize], InputCertifier]] = {
    "clever": lambda size: ByConstant(Clever(0.2, num_iterations=3, chunk_size=size, **FEW)),
    "jacobian norm": lambda size: ByConstant(JacobianNorm(tolerance=0.05, chunk_size=size)),
    "margins": lambda size: MarginClever(0.2, chunk_size=size, **FEW),
    "smoothed encoder": lambda size: SmoothedEncoder(0.05, 2000, 0.1, norm_bound=2.5, chunk_size=size),
    "smoothed decision": lambda size: SmoothedDecision(0.05, 300, chunk_size=size),
}


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 6), nn.Tanh())
    encoder = FrozenEncoder(layers, in_channels=1, input_size=8)
    labels = encoder(IMAGES)[:, 0].argsort().argsort() * 3 // 40
    return ImageClassifier(encoder, EllipsHead(6, 3, latent_dim=None, shrinkage=0.5).fit(encoder(IMAGES), labels))


class Listener(nn.Module):
    """Passes on what an encoder gives, and writes down how much it was given at once."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        features: Tensor = self.encoder(images)
        return features


@pytest.mark.parametrize("kind", CERTIFIERS)
def test_certificates_do_not_depend_on_the_chunk_size(kind: str, classifier: ImageClassifier) -> None:
    listener = Listener(classifier.encoder)
    heard = ImageClassifier(listener, classifier.head)
    found: dict[ChunkSize, Certificate] = {}
    largest = {}
    for size in ("auto", 7, 1000):
        listener.sizes.clear()
        found[size] = heard.certify(IMAGES[::16], CERTIFIERS[kind](size))
        largest[size] = max(listener.sizes)
    assert largest[7] <= 22  # what a certifier that samples holds the network against itself on
    for size in (7, 1000):
        assert torch.equal(found[size].prediction, found["auto"].prediction)
        torch.testing.assert_close(found[size].radius, found["auto"].radius, rtol=1e-3, atol=1e-6)
        assert found[size].source == found["auto"].source
    assert describe(CERTIFIERS[kind](7)) == describe(CERTIFIERS[kind]("auto"))  # a run goes on with another
    assert (found["auto"].radius > 0).any()


def test_each_image_stops_iterating_by_itself(classifier: ImageClassifier) -> None:
    source = JacobianNorm(tolerance=0.1)
    together = source(classifier.latents, IMAGES[:8])
    alone = [source(classifier.latents, image[None]) for image in IMAGES[:8]]
    torch.testing.assert_close(together.constant, torch.cat([x.constant for x in alone]), rtol=1e-5, atol=0)
    residual = torch.cat([x.diagnostics["residual"] for x in alone])
    torch.testing.assert_close(together.diagnostics["residual"], residual, rtol=1e-2, atol=1e-5)
    assert (residual <= 0.1).all()
    more = JacobianNorm(tolerance=0.0)(classifier.latents, IMAGES[:8]).constant
    assert (together.constant < more).any()  # not all of it was iterated to the end


def hungry(limit: int, error: Exception, sizes: list[int]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function for which memory is enough up to so many samples."""

    def run(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(a))
        if len(a) > limit:
            raise error
        return a + b, 2 * a

    return run


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_chunk_that_does_not_fit_is_halved(error: Exception) -> None:
    a, b, sizes = torch.arange(50.0), torch.arange(50.0, 0, -1), []
    some = Chunks(32, 32)
    with pytest.warns(UserWarning, match="not enough memory for") as said:
        total, double = some.run(hungry(9, error, sizes), a, b)
    assert "32 samples at once; going on with 16" in str(said[0].message)
    assert torch.equal(total, a + b)
    assert torch.equal(double, 2 * a)
    assert sizes == [32, 16, 8, 8, 8, 8, 8, 8, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some.run(hungry(9, error, sizes), a, b)  # it remembers


def test_one_sample_that_does_not_fit_is_an_error_that_says_so() -> None:
    with pytest.raises(MemoryError) as error, pytest.warns(UserWarning, match="not enough memory"):
        Chunks(4, 4).run(hungry(0, MemoryError(), []), torch.ones(5), torch.ones(5))
    assert "Not even one sample" in error.value.__notes__[0]
    sizes: list[int] = []
    with pytest.raises(RuntimeError, match="shapes"):
        Chunks(4, 4).run(hungry(0, RuntimeError("shapes do not fit"), sizes), torch.ones(5), torch.ones(5))
    assert sizes == [4]


def test_what_a_failed_attempt_held_is_gone_before_the_next() -> None:
    held: list[Any] = []

    def run(a: Tensor) -> tuple[Tensor]:
        assert all(tensor() is None for tensor in held)
        much = a.repeat(100)
        held.append(weakref.ref(much))
        if len(a) > 4:
            raise MemoryError
        return (a,)

    with pytest.warns(UserWarning, match="not enough memory"):
        Chunks(8, 8).run(run, torch.ones(20))
    assert len(held) == 6


@pytest.mark.parametrize("megabytes", [10, 100, 1000, 100_000])
def test_auto_takes_what_the_free_memory_allows(megabytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "free_memory", lambda device: megabytes * 1e6)
    sizes: list[int] = []

    def run(a: Tensor) -> tuple[Tensor]:
        sizes.append(len(a))
        much = a.repeat(1, 250_000)  # a megabyte each
        return (much.sum(dim=1),)

    (found,) = Chunks("auto", 256).run(run, torch.ones(300, 1))
    assert torch.equal(found, torch.full((300,), 250_000.0))
    assert sizes[0] == 2
    assert 0.9 * min(256, SHARE * megabytes) - 1 <= max(sizes) <= min(256, SHARE * megabytes)
    assert sum(sizes) == 300


def test_auto_is_not_misled_by_what_all_samples_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "free_memory", lambda device: 200e6)
    sizes: list[int] = []

    def run(a: Tensor) -> tuple[Tensor]:
        sizes.append(len(a))
        shared = torch.ones(5_000_000)  # 20 megabytes, such as weights under autocast
        much = a.repeat(1, 250_000)
        return (much.sum(dim=1) * shared[0],)

    Chunks("auto", 256).run(run, torch.ones(300, 1))
    assert sizes[:2] == [2, 9]
    assert 25 < sizes[2] <= 80


def test_no_samples_give_no_rows() -> None:
    (found,) = Chunks("auto", 4).run(lambda a: (a @ torch.ones(3, 2),), torch.ones(0, 3))
    assert found.shape == (0, 2)


@pytest.mark.parametrize("wrong", [0, -1, "all", 2.5])
def test_wrong_sizes_are_refused(wrong: Any) -> None:  # noqa: ANN401
    for make in CERTIFIERS.values():
        with pytest.raises(ValueError, match="`chunk_size` to be at least 1, or 'auto'"):
            make(wrong)


def test_the_errors_of_torchs_own_allocator_are_known() -> None:
    def run(a: Tensor) -> tuple[Tensor]:
        torch.empty(len(a) ** 12)  # 16 samples would take more than any processor can address
        return (a + 1,)

    with pytest.warns(UserWarning, match="not enough memory"):
        (found,) = Chunks(32, 32).run(run, torch.zeros(40))
    assert torch.equal(found, torch.ones(40))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_that_runs_out_of_memory_goes_on() -> None:
    def run(a: Tensor) -> tuple[Tensor]:
        torch.empty(len(a), 2**30, dtype=torch.uint8, device=a.device)  # a GiB each
        return (a + 1,)

    points = torch.zeros(1024, device="cuda")
    with pytest.warns(UserWarning, match="not enough memory for 1024"):
        (found,) = Chunks(1024, 1024).run(run, points)
    assert torch.equal(found, points + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Chunks("auto", 1024).run(run, points)

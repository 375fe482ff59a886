"""What a process does around a proof: threads, settings, buffers that are used again. None of it may change a claim."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ellips.certificates import Prover, check, confirm, pairs
from ellips.certificates.geometries import geometry_of
from ellips.precision import _GRAIN, require_subnormals
from tests.ellips.mixtures import random_mixture, random_points
from tests.soundness.forged import honest


@pytest.fixture
def _hasty() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_hasty")
def test_threads_that_decompose_at_once_do_not_get_the_spectra_of_other_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slots of two batches of pairs were given out before either was there: radii too large, and called exact."""
    classes = 10
    low, high = torch.triu_indices(classes, classes, 1)
    truth = geometry_of(random_mixture("full", classes, 4, 3)).pairs.lowest(low, high)
    monkeypatch.setattr(pairs, "_KEPT_ELEMENTS", 12 * 4**2)  # of 45 pairs
    for turn in range(6):
        spectra, found = geometry_of(random_mixture("full", classes, 4, 3)).pairs, list[tuple[Tensor, Tensor]]()
        together = threading.Barrier(4)

        def ask(seed: int, spectra: pairs.PairSpectra = spectra, out: list[tuple[Tensor, Tensor]] = found) -> None:
            generator = torch.Generator().manual_seed(seed)
            together.wait()  # noqa: B023 - they end before the next is made
            for _ in range(10):
                some = torch.randint(len(low), (4,), generator=generator)
                out.append((some, spectra.lowest(low[some], high[some])))

        threads = [threading.Thread(target=ask, args=(4 * turn + i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 40
        for some, values in found:
            assert torch.allclose(values, truth[some], rtol=1e-12)


def test_pairs_for_which_there_was_no_memory_are_decomposed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever halves a batch when memory runs out goes on with the same mixture."""
    low, high = torch.triu_indices(4, 4, 1)
    truth = geometry_of(random_mixture("full", 4, 3)).pairs.lowest(low, high)
    found, spectra, calls = geometry_of(random_mixture("full", 4, 3)).pairs, pairs.Spectra, []

    def run_out(*columns: Tensor) -> pairs.Spectra:
        calls.append(1)
        if len(calls) == 2:  # the first is the pairs' own, this one joins them to those that are there
            raise torch.OutOfMemoryError
        return spectra(*columns)

    monkeypatch.setattr(pairs, "Spectra", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        found.lowest(low[:2], high[:2])
    assert torch.equal(found.lowest(low[2:], high[2:]), truth[2:])
    assert torch.equal(found.lowest(low, high), truth)


def test_a_prover_of_another_mixture_proves_nothing_of_this_one() -> None:
    ellips, z, certificate = honest()
    other = honest(seed=1)[0]
    prover = Prover(ellips)
    assert check(ellips, z, certificate, prover=prover).all()
    for act in (check, confirm):
        with pytest.raises(ValueError, match=r"Prover\(mixture\)"):
            act(other, z, certificate, prover=prover)
    ellips.means.data[0] += 1e-3  # such a change is counted nowhere
    for act in (check, confirm):
        with pytest.raises(ValueError, match="before it changed"):
            act(ellips, z, certificate, prover=prover)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_nothing_around_a_proof_changes_it(kind: str) -> None:
    ellips = random_mixture(kind, 4, 5)
    z = random_points(ellips, 6)
    expected = ellips.certify(z).radius
    before = torch.get_default_dtype()
    for around in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
        for default in (torch.float16, torch.float32):
            fresh = random_mixture(kind, 4, 5)
            torch.set_default_dtype(default)
            try:
                with around:
                    certificate = fresh.certify(z.clone())
                    assert certificate.radius.dtype == torch.float64
                    assert check(fresh, z, certificate).all()
                    assert not check(fresh, z, replace(certificate, radius=1.001 * certificate.radius)).any()
            finally:
                torch.set_default_dtype(before)
            assert torch.equal(certificate.radius, expected)


def test_the_scale_that_is_remembered_is_nobodys_to_write_to() -> None:
    ellips = random_mixture("full", 3, 4)
    before = float(ellips.scale)
    ellips.scale.mul_(2)
    assert float(ellips.scale) == before


FLUSHING = """
import torch
torch.set_num_threads(1)
require_subnormals()
if torch.set_flush_denormal(True):
    torch.set_num_threads(2)
    torch.ones(2**18) * 2  # starts the second thread, which goes on flushing
    torch.set_flush_denormal(False)
    try:
        require_subnormals()
    except RuntimeError:
        print("refused")
else:
    print("refused")
"""


def test_subnormals_count_in_every_thread() -> None:
    asked = f"_GRAIN = {_GRAIN}\n{inspect.getsource(require_subnormals)}{FLUSHING}"  # without all of the library
    ended = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "refused"

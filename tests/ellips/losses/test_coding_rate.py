"""MCR² against a dense-loop NumPy reference, finite differences, and a bound on memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ellips.losses import CodingRateReduction, class_coding_rate, coding_rate
from tests.processes import run_apart


def reference(z: NDArray[np.float64], labels: NDArray[np.int64], epsilon_squared: float) -> tuple[float, float]:
    """Both terms by d × d matrices and a loop over classes."""
    n, d = z.shape
    total = 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * epsilon_squared) * z.T @ z)[1]
    classes = 0.0
    for k in np.unique(labels):
        rows = z[labels == k]
        matrix = np.eye(d) + d / (len(rows) * epsilon_squared) * rows.T @ rows
        classes += len(rows) / (2 * n) * np.linalg.slogdet(matrix)[1]
    return total, classes


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 2), (40, 5, 4), (40, 64, 4), (60, 6, 30), (50, 7, 1)])
@pytest.mark.parametrize("epsilon_squared", [0.1, 0.5])
def test_values_agree_with_the_dense_loop(n: int, d: int, k: int, epsilon_squared: float) -> None:
    rng = np.random.default_rng(n * d)
    z, labels = rng.normal(size=(n, d)), rng.integers(0, k, n)
    total, classes = reference(z, labels, epsilon_squared)
    latents, target = torch.from_numpy(z), torch.from_numpy(labels)
    assert float(coding_rate(latents, epsilon_squared)) == pytest.approx(total, rel=1e-12)
    assert float(class_coding_rate(latents, target, epsilon_squared)) == pytest.approx(classes, rel=1e-12)
    loss = CodingRateReduction(epsilon_squared)(latents, target)
    assert float(loss) == pytest.approx(classes - total, rel=1e-10, abs=1e-12)


def test_gradient_agrees_with_finite_differences() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 3, 3, 3, 3, 3])
    for d in (3, 8):
        z = torch.randn(12, d, generator=rng, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: CodingRateReduction()(x, labels), (z,))


def test_warm_up_uses_the_expansion_term_alone() -> None:
    z, labels = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    loss = CodingRateReduction(warmup_steps=5)
    assert float(loss(z, labels, step=4)) == pytest.approx(-float(coding_rate(z)))
    assert float(loss(z, labels, step=5)) == pytest.approx(float(class_coding_rate(z, labels) - coding_rate(z)))


def test_runs_in_float32_under_autocast() -> None:
    z, labels = torch.randn(64, 16), torch.arange(64) % 4
    loss = CodingRateReduction()
    expected = loss(z, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(z, labels)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert loss(z.bfloat16(), labels).dtype == torch.float32


def test_very_long_latents_fall_back_to_float64() -> None:
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 40)) * 1e4, np.arange(200) % 3
    total, classes = reference(z, labels, 0.1)
    loss = CodingRateReduction()(torch.from_numpy(z).float(), torch.from_numpy(labels))
    assert float(loss) == pytest.approx(classes - total, rel=0.05)


def test_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="epsilon_squared"):
        CodingRateReduction(epsilon_squared=0.0)
    with pytest.raises(ValueError, match="warmup_steps"):
        CodingRateReduction(warmup_steps=-1)
    z = torch.randn(4, 3)
    z[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        CodingRateReduction()(z, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="shape"):
        CodingRateReduction()(torch.randn(4, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one sample"):
        CodingRateReduction()(torch.randn(0, 3), torch.zeros(0, dtype=torch.long))


def peak() -> int:
    """The process's largest memory, in kibibytes; getrusage's may be that of the one it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def measure(result: Path) -> None:
    torch.manual_seed(0)
    z = torch.randn(1024, 1024, requires_grad=True)
    warm = CodingRateReduction()(z[:8], torch.arange(8))
    warm.backward()
    before, some = peak(), torch.arange(1024)
    for labels in (some % 1000, (some - 24).clamp(min=0) % 1000, torch.randint(1000, (1024,))):
        CodingRateReduction()(z, labels).backward()
    # A class that fills half of the batch must not make all others as large as itself.
    CodingRateReduction()(z, (some - 511).clamp(min=0)).backward()
    result.write_text(str(peak() - before))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux's /proc")
def test_a_thousand_classes_in_a_batch_of_1024_need_less_than_a_gigabyte(tmp_path: Path) -> None:
    run_apart(measure, tmp_path / "kibibytes")
    kibibytes = int((tmp_path / "kibibytes").read_text())
    assert 0 < kibibytes * 1024 < 1e9

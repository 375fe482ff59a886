"""Two and three gloo processes against one: losses, gradients, mixture, metrics. If they cannot start, this fails.

Three processes take half a minute and run with `make test-faults`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ellips import ClassMoments
from tests.lightning_modules.ddp_worker import fit, rows_and_labels

ROOT = Path(__file__).parents[2]
WORKER = str(Path(__file__).with_name("ddp_worker.py"))
COMMANDS = {
    2: [sys.executable, WORKER],  # Lightning starts the second process itself
    3: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", WORKER],
}


def launch(folder: Path, world: int) -> list[dict[str, Any]]:
    """Run the worker in `world` processes and return what each wrote; a process that fails or is missing fails here."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTEST_"))},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [*COMMANDS[world], str(folder), "--devices", str(world)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, f"{world} processes did not run:\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    results = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
    assert [r["world"] for r in results] == [world] * world
    return results


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.faults)])
def distributed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return launch(tmp_path_factory.mktemp("ddp"), request.param)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit(1, tmp_path_factory.mktemp("alone"), devices=1)


def test_every_step_has_the_one_process_loss(distributed: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert len(alone["losses"]) == 10
    for result in distributed:
        for here, there in zip(alone["losses"], result["losses"], strict=True):
            assert here.keys() == there.keys()
            for name, value in here.items():
                assert float(there[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name


def test_the_gradient_is_the_one_process_gradient(distributed: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert set(alone["gradients"]) == {f"head.projector.{name}" for name in (
        "pre_feature.0.weight", "pre_feature.0.bias", "pre_feature.1.weight", "pre_feature.1.bias",
        "pre_feature.3.weight", "pre_feature.3.bias", "feature_head.weight", "feature_head.bias",
    )}  # fmt: skip
    scale = max(float(gradient.norm()) for gradient in alone["gradients"].values())
    for result in distributed:
        for name, gradient in alone["gradients"].items():
            difference = float((result["gradients"][name] - gradient).norm())
            assert difference <= 1e-5 * scale, name


def test_weights_and_mixture_end_the_same(distributed: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for result in distributed:
        assert torch.equal(result["count"], alone["count"])
        for name, value in alone["state"].items():
            difference = float((result["state"][name].double() - value.double()).norm())
            assert difference <= 1e-5 * max(1.0, float(value.double().norm())), name
    assert all(
        torch.equal(distributed[0]["state"][name], result["state"][name])
        for result in distributed
        for name in result["state"]
    )


def test_metrics_count_every_image_once(distributed: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert {"val/accuracy", "test/accuracy"} <= alone["metrics"].keys()
    for result in distributed:
        assert result["metrics"] == pytest.approx(alone["metrics"], abs=1e-7)


def test_rows_of_uneven_length_are_gathered_with_gradients(distributed: list[dict[str, Any]]) -> None:
    world = len(distributed)
    rows = torch.arange(1, world * (world + 1) // 2 + 1, dtype=torch.float64).requires_grad_()
    rows.prod().backward()
    assert rows.grad is not None
    for result in distributed:
        assert torch.equal(result["gather"]["gathered"], rows.detach())
    torch.testing.assert_close(torch.cat([result["gather"]["gradient"] for result in distributed]), rows.grad)


def test_moments_are_merged_in_place_and_go_on(distributed: list[dict[str, Any]]) -> None:
    z, labels = rows_and_labels()
    for kind, first in distributed[0]["moments"].items():
        for stage, size in enumerate((200, 200, 300, 300)):
            whole = ClassMoments(4, 3, kind)
            whole.update(z[:size], labels[:size])
            for result in distributed:
                columns = zip(result["moments"][kind][stage], whole.compute(), first[stage], strict=True)
                for found, expected, same in columns:
                    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)
                    assert torch.equal(found, same)


def test_every_process_holds_the_first_ones_mixture(distributed: list[dict[str, Any]]) -> None:
    for kind, first in distributed[0]["differing_fit"].items():
        assert bool(first["fitted"])
        assert ("directions" in first) == (kind == "low_rank")
        for name, value in first.items():
            assert all(torch.equal(value, result["differing_fit"][kind][name]) for result in distributed), (kind, name)


def test_training_starts_from_the_first_ones_mixture(distributed: list[dict[str, Any]]) -> None:
    assert torch.equal(distributed[0]["started"]["means"], torch.arange(12.0).double().view(3, 4))
    assert bool(distributed[0]["started"]["fitted"])
    for name, value in distributed[0]["started"].items():
        assert all(torch.equal(value, result["started"][name]) for result in distributed), name


def test_every_process_looks_at_the_first_ones_directions(distributed: list[dict[str, Any]]) -> None:
    for name, value in distributed[0]["differing_sketch"].items():
        assert all(torch.equal(value, result["differing_sketch"][name]) for result in distributed), name


def test_the_mixture_is_not_sent_at_each_step_but_the_statistics_of_batches_are(
    distributed: list[dict[str, Any]],
) -> None:
    statistics = [f"projector.pre_feature.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    for result in distributed:
        assert result["buffers"] == [f"head.{name}" for name in statistics]
        for buffers in result["own_buffers"].values():
            assert buffers == [f"part.head.{name}" for name in statistics]


def test_gradients_of_a_mixture_made_trainable_later_are_averaged(distributed: list[dict[str, Any]]) -> None:
    world = len(distributed)
    for result in distributed:
        expected = torch.full((4, 4), (world + 1) / 2, dtype=torch.float64)
        torch.testing.assert_close(result["mean_gradient"], expected, rtol=1e-14, atol=0)

"""The callbacks in a project of someone else, with ordinary DataLoaders, in two processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.callbacks.foreign_worker import SIZE, evaluate, evaluate_together
from tests.processes import run_together


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = evaluate(tmp_path_factory.mktemp("alone"), devices=1)
    assert any("leaves out KL and the degradation bound" in said for said in found["said"])  # seven images are too few
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes saw and logged; one that fails or is missing fails here."""
    folder = tmp_path_factory.mktemp("two")
    run_together(evaluate_together, folder, 2)
    results = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [result["world"] for result in results] == [2, 2]
    return results


def test_the_samplers_copies_are_there_and_do_not_count(alone: dict[str, Any], processes: list[dict[str, Any]]) -> None:
    shares = [result["indices"] for result in processes]
    assert sum(map(len, shares)) == SIZE + 1, "nothing was padded"
    assert set().union(*shares) == set(range(SIZE))
    for result in processes:
        assert result["shared"] == pytest.approx(alone["shared"], rel=1e-6, nan_ok=True)
    # Two of the seven are labelled wrongly; of eight rows it would be another share.
    assert alone["shared"]["test/clean_accuracy"] == pytest.approx(5 / 7)


def test_a_process_that_saw_no_batch_logs_the_same_names_and_numbers(
    alone: dict[str, Any], processes: list[dict[str, Any]]
) -> None:
    assert [result["indices alone"] for result in processes] == [list(range(SIZE)), []]
    for result in processes:
        assert "test/certified_accuracy/estimated/input-exact-jacobian-norm@0.25" in result["alone"]
        assert result["alone"] == pytest.approx(alone["shared"], rel=1e-6, nan_ok=True)


def test_nobody_is_told_to_reduce_what_all_processes_have_alike(processes: list[dict[str, Any]]) -> None:
    said = [message for result in processes for message in result["said"]]
    assert [message for message in said if "sync_dist" in message] == []
    assert any("DistributedSampler" in message for message in said), "Lightning's own warnings were not heard"


def test_radii_of_the_data_are_those_of_one_process(alone: dict[str, Any], processes: list[dict[str, Any]]) -> None:
    assert len(alone["radii"]) >= 3
    assert [result["radii"] for result in processes] == [alone["radii"]] * 2
    assert {f"test/certified_accuracy/latent-exact@{radius:g}" for radius in alone["radii"][1:]} <= alone[
        "shared"
    ].keys()

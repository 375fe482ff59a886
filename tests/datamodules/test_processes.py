from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.datamodules.evaluate_digits import evaluate
from tests.processes import run_together


def gathered(output: Path, stage: str, processes: int) -> dict[str, torch.Tensor]:
    parts = [torch.load(output / f"{stage}-{processes}-{rank}.pt") for rank in range(processes)]
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = batch["index"].argsort()
    return {name: value[order] for name, value in batch.items()}


def cached_files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "cache" / "test").iterdir())}


def test_two_processes_give_what_one_gives(tmp_path_factory: pytest.TempPathFactory) -> None:
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    evaluate(alone, 1)
    run_together(evaluate, together, 2)
    for stage, size in (("val", 270), ("test", 359), ("cached", 359)):
        one, two = gathered(alone, stage, 1), gathered(together, stage, 2)
        assert two["index"].tolist() == one["index"].tolist() == list(range(size))
        assert torch.equal(two["label"], one["label"])
        torch.testing.assert_close(two["feature"], one["feature"], rtol=1e-4, atol=1e-4)
        metrics = [json.loads((folder / f"{stage}-{n}.json").read_text()) for folder, n in ((alone, 1), (together, 2))]
        assert metrics[1] == pytest.approx(metrics[0], rel=1e-5)
    one, two = cached_files(alone), cached_files(together)
    assert list(one) == list(two)
    assert "manifest.json" in one

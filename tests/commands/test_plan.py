"""`ellips plan` against what runs write and what goes through their encoder, counted."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ellips.commands import certify, encode, plan
from ellips.commands.training import train
from ellips.encoders import FrozenEncoder
from ellips.encoders import weights as encoder_weights
from tests.shipped import arguments

GRID = "{radius: 0.5, pooling: [0.0, 0.5], shrinkage: [0.3], method: pairwise}"
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
FIT = [*arguments("data/digits", "model/digits"), "--model.hidden_dim", "400", "--trainer.max_epochs", "3"]
FIT += ["--model.latent_dim", "80"]
FIT += ["--trainer.check_val_every_n_epoch", "2", "--model.regularization", GRID, "--data.keep_images", "false"]


def planned(folder: Path, *given: str) -> dict[str, Any]:
    assert plan.main([*given, "--json", str(folder / "plan.json")]) == 0
    found: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return found


def encoded(found: dict[str, Any], start: str) -> int:
    return sum(stage["forward"] for name, stage in found["stages"].items() if name.startswith(start))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images, batch by batch, that went through an encoder."""
    seen: list[int] = []
    whole: Callable[..., torch.Tensor] = FrozenEncoder.encode

    def counting(self: FrozenEncoder, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return whole(self, images)

    monkeypatch.setattr(FrozenEncoder, "encode", counting)
    return seen


def checkpoints(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "runs/digits/checkpoints").iterdir())


@pytest.mark.parametrize(("sanity", "optimizer"), [("0", "sgd"), ("2", "adamw")])
def test_a_fit_without_a_cache_encodes_as_many_images_as_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int], sanity: str, optimizer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*FIT, "--trainer.num_sanity_val_steps", sanity, "--data.eval_batch_size", "100"]
    given += ["--model.optimization.optimizer", optimizer]
    found = planned(tmp_path, *given)
    train(["fit", *given, *QUIET])
    assert sum(counted) == encoded(found, "fit") > 3 * 1168
    assert encoded(found, "encode") == 0
    assert found["bytes"]["disk: checkpoints, best and last"] == pytest.approx(checkpoints(tmp_path), rel=0.02)


def test_a_fit_with_a_cache_writes_and_encodes_as_much_as_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*FIT, "--data.cache_dir", "cache", "--data.shard_rows", "500"]
    found = planned(tmp_path, *given)
    train(["fit", *given, *QUIET])
    assert sum(counted) == encoded(found, "encode: train") == 1168 + 270
    assert encoded(found, "fit") == 0
    encode.main(["--config", given[1], *given[-4:], "--accelerator", "cpu", "--splits", "[test]"])
    assert sum(counted[-4:]) >= encoded(found, "encode: test") == 359
    for split in ("train", "val", "test"):
        shards = [path.read_bytes() for path in (tmp_path / "cache" / split).glob("*.safetensors")]
        # A file begins with the length of its header, then the header, then the tensors.
        tensors = sum(len(shard) - 8 - struct.unpack("<Q", shard[:8])[0] for shard in shards)
        assert tensors == found["bytes"][f"disk: cache, {split}"], split


def test_certifying_encodes_as_many_images_as_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_checkpoint: Path
) -> None:
    seen: list[int] = []
    whole: Callable[..., torch.Tensor] = FrozenEncoder.forward

    def counting(self: FrozenEncoder, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return whole(self, images)

    votes = "{class_path: ellips.input_certifiers.SmoothedDecision, init_args: {num_samples: 40, stopping: fixed, "
    votes += "num_selection: 1}}"
    sources = [
        "Clever, init_args: {num_batches: 2, num_samples: 3, num_iterations: 2}",
        "JacobianNorm, init_args: {num_iterations: 4}",
    ]
    chosen = ", ".join(f"{{class_path: ellips.lipschitz.{source}}}" for source in sources)
    given = [*arguments("data/digits"), "--certifiers", f"[{chosen}, {votes}]", "--skip", "40", "--batch_size", "4"]
    found = planned(tmp_path, *given, "--model.latent_dim", "null")
    monkeypatch.setattr(FrozenEncoder, "forward", counting)
    certify.main([*given, "--out", str(tmp_path / "run"), "--ckpt_path", str(digits_checkpoint)])
    assert found["settings"]["count"] == 9
    assert sum(seen) == encoded(found, "certify")
    proofs = sum(path.stat().st_size for path in (tmp_path / "run").glob("latent-*.safetensors"))
    assert found["bytes"]["disk: certificates with their classifier"] == pytest.approx(proofs, rel=0.05)


def test_hours_are_those_of_the_processes(tmp_path: Path) -> None:
    given = [*arguments("data/digits", "model/digits", "certify/digits_votes"), "--images_per_second", "50"]
    (one, two) = (planned(tmp_path, *given, "--trainer.devices", n)["stages"] for n in ("1", "2"))
    votes = one["certify: smoothed-decision"]
    assert votes["hours"] == pytest.approx(votes["passes"] / 50 / 3600)
    assert 0 < votes["expected_hours"] < votes["hours"]
    assert two["certify: smoothed-decision"]["hours"] == pytest.approx(votes["hours"] / 2)
    assert "hours" not in planned(tmp_path, *given[:-2])["stages"]["test"]


def test_neither_weights_nor_images_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load_state_dict", "load_state_dict_from_hf", "hf_hub_download"):
        monkeypatch.setattr(encoder_weights, name, lambda *_, **__: pytest.fail("weights were read"))
    counts = "{train: 1268355, val: 12812, test: 50000, classes: 1000}"
    given = arguments("data/imagenet", "model/paper_imagenet", "certify/imagenet")
    found = planned(tmp_path, *given, "--counts", counts, "--processes", "8")
    assert found["bytes"]["covariances of all classes (T)"] == 8 * (1000 * (1024 + 1) * 32 + 1024**2)
    assert found["bytes"]["disk: cache, test"] == 50_000 * (4 * 768 + 16)
    assert found["settings"]["count"] == 500
    with pytest.raises(FileNotFoundError, match="imagenet"):
        plan.main(given)
    with pytest.raises(ValueError, match=r"`counts`.*classes"):
        plan.main([*given, "--counts", "{train: 5, val: 5, test: 5}"])

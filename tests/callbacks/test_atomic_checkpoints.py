"""Checkpoints are there whole or not at all, and a damaged one is refused by name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks import AtomicCheckpointIO
from ellips import EllipsHead
from ellips.checkpoints import head_digest, load_checkpoint

OLD = Path(__file__).parents[1] / "data/version_0_1/run/checkpoints/last.ckpt"


def saved(path: Path) -> dict[str, Any]:
    """A checkpoint as GenEllips leaves it."""
    generator = torch.Generator().manual_seed(0)
    head = EllipsHead(3, 2, latent_dim=None, shrinkage=0.5)
    head.fit(torch.randn(40, 3, generator=generator), torch.arange(40) % 2)
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    checkpoint = {"state_dict": state, "head": head.config, "encoder_fingerprint": {"weights": "sha256:a"}}
    checkpoint["head_digest"] = head_digest(state, head.config, checkpoint["encoder_fingerprint"])
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return checkpoint


def outcome(path: Path) -> tuple[dict[str, Any], str | None]:
    """The head's state, or what was said instead."""
    try:
        return EllipsHead.from_checkpoint(path).state_dict(), None
    except ValueError as error:
        return {}, str(error)


@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.faults)])
@pytest.mark.parametrize("old", [False, True])
def test_a_flipped_bit_is_refused_with_the_newest_intact_one(tmp_path: Path, count: int, old: bool) -> None:
    path, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    saved(path)
    if old:
        path.write_bytes(OLD.read_bytes())
    saved(best)
    whole, draw, refused = path.read_bytes(), random.Random(count), 0
    expected = EllipsHead.from_checkpoint(path).state_dict()
    for _ in range(count):
        bit = draw.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        found, said = outcome(path)
        if said is None:  # padding between two parts
            assert all(torch.equal(found[name], value) for name, value in expected.items()), bit
        else:
            assert str(path) in said
            assert str(best) in said, said
            refused += 1
    assert refused > 0.3 * count


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_one_that_is_cut_off_is_refused_by_lightning_and_without_it(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "last.ckpt"
    saved(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    for read in (load_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(ValueError, match=r"last\.ckpt: expected a whole checkpoint but it is cut off"):
            read(path)


@pytest.mark.parametrize("change", ["state", "head", "encoder", "no encoder"])
def test_a_head_or_an_encoder_that_was_changed_afterwards_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint = saved(path)
    match change:
        case "state":
            checkpoint["state_dict"]["head.ellips.means"][0, 0] += 1e-9
        case "head":
            checkpoint["head"]["shrinkage"] = 0.4
        case "encoder":
            checkpoint["encoder_fingerprint"]["weights"] = "sha256:b"
        case _:
            del checkpoint["encoder_fingerprint"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"last\.ckpt: expected the head and the encoder's fingerprint"):
        EllipsHead.from_checkpoint(path)


def test_the_old_one_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved(path)
    before = path.read_bytes()

    def full(checkpoint: object, target: Path) -> None:
        Path(target).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({}, path)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["last.ckpt"]


def test_a_trainer_takes_it_and_goes_on_from_what_it_wrote(tmp_path: Path) -> None:
    class Model(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return (self.weight * batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {**quiet, "default_root_dir": tmp_path, "enable_checkpointing": False}
    trainer = L.Trainer(**options, max_epochs=1, plugins=[AtomicCheckpointIO()])
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(2, 1)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = L.Trainer(**options, max_epochs=2, plugins=[AtomicCheckpointIO()])
    again.fit(Model(), torch.utils.data.DataLoader(torch.ones(2, 1)), ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.global_step == 4

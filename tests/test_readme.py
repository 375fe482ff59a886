"""What the README shows is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_certify_and_check() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 10
    z = torch.randn(2000, 64, generator=generator) + 3 * torch.nn.functional.one_hot(labels, 64)
    names: dict[str, Any] = {"z": z, "labels": labels}
    exec(BLOCKS[0], names)
    assert (names["certificate"].radius > 0).any()


def test_the_head_in_another_lightning_project() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[1], names)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    images = torch.rand(400, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=200)
    model = names["Mine"](torch.nn.Identity(), 36, 4)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, loader)
    certificates = trainer.predict(model, loader)
    assert certificates is not None
    assert len(certificates[0]) == 200
    predictions = torch.cat([certificate.prediction for certificate in certificates])
    assert (predictions == labels).float().mean() > 0.9


def test_files_and_commands_it_names_exist() -> None:
    root = Path(__file__).parents[1]
    for path in re.findall(r"(?:configs|docs)/[\w/.]+\.(?:yaml|md|png)", README):
        assert (root / path).is_file(), path
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert f"\n{target}:" in makefile, target

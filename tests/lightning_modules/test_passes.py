"""What errors of a fit call a class, and passes that are not shown."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from ellips import EllipsHead
from ellips.lightning_modules.passes import followed_batches, naming_classes
from ellips.types import FeatureBatch


def test_errors_about_a_class_say_its_name() -> None:
    head, labels = EllipsHead(4, 3, latent_dim=None), torch.tensor([0, 1, 2, 2])
    with pytest.raises(ValueError, match=r"class 0 \(cat\) has 1"), naming_classes(["cat", "dog", "horse"]):
        head.fit(torch.rand(4, 4), labels)
    for names in ([], ["0", "1", "2"]):
        with pytest.raises(ValueError, match="class 0 has 1"), naming_classes(names):
            head.fit(torch.rand(4, 4), labels)


def test_other_errors_are_left_as_they_are() -> None:
    error = ValueError("Expected something else")
    with pytest.raises(ValueError, match="something else") as raised, naming_classes(["cat"]):
        raise error
    assert raised.value is error


def test_a_trainer_without_a_bar_shows_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    batches = 2 * [FeatureBatch(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1))]
    assert len(list(followed_batches(trainer, batches, "Fitting"))) == 2
    assert capsys.readouterr().out == ""

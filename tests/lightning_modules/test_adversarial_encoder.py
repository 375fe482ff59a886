from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ellips.commands.train_encoder import train_encoder
from ellips.encoders import CifarResNet, FrozenEncoder, LinearHead
from ellips.encoders.augmentation import step_generator
from ellips.splits import digits_part
from lightning_modules.adversarial_encoder import AdversarialEncoderTraining
from tests.lightning_modules.test_noisy_encoder import QUIET, WHOLE
from tests.shipped import arguments

MODEL = """
model:
  class_path: ellips.lightning_modules.AdversarialEncoderTraining
  init_args:
    encoder:
      class_path: ellips.encoders.FrozenEncoder
      init_args:
        model: {class_path: ellips.encoders.CifarResNet, init_args: {depth: 8, width: 4}}
        weights: null
        input_size: 8
        mean: [0.5, 0.5, 0.5]
        std: [0.5, 0.5, 0.5]
    epsilon: 0.3
    steps: 2
    learning_rate: 0.02
    export_name: moved
"""
CPU = torch.device("cpu")


def linear_training(epsilon: float, steps: int = 3) -> AdversarialEncoderTraining:
    """A network whose most harmful direction is known: the first of 12 numbers speaks for class 0."""
    encoder = FrozenEncoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), input_size=2, mean=[0.0] * 3, std=[1.0] * 3)
    training = AdversarialEncoderTraining(2, encoder, epsilon, steps)
    with torch.no_grad():
        training.backbone[1].weight.zero_()[0, 0] = 1.0
        training.head.weight.copy_(torch.eye(2))
    return training


def test_images_go_where_the_loss_is_larger_and_no_farther_than_epsilon() -> None:
    training = linear_training(0.1)
    images, labels = torch.full((64, 3, 2, 2), 0.5), torch.tensor([0, 1]).repeat(32)
    moved = training.changed(images, labels, step_generator(CPU, 1)) - images
    assert torch.linalg.vector_norm(moved.flatten(1), dim=1).max() <= 0.1 * (1 + 1e-6)
    along = moved[:, 0, 0, 0] * torch.where(labels == 0, -1, 1)
    assert along.min() > 0.09  # of at most 0.1, straight ahead, which on a linear network is the worst there is


def test_images_stay_images() -> None:
    images, labels = digits_part("val")
    training = AdversarialEncoderTraining(10, FrozenEncoder(CifarResNet(8, 4), input_size=8), epsilon=2.0)
    moved = training.changed(images.expand(-1, 3, -1, -1), labels, step_generator(CPU, 1))
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert training.loss(moved, labels) > training.loss(images.expand(-1, 3, -1, -1), labels)


def test_the_attack_trains_nothing_and_is_drawn_anew_in_each_step() -> None:
    training = AdversarialEncoderTraining(10, FrozenEncoder(CifarResNet(8, 4), input_size=8))
    before = {name: value.clone() for name, value in training.state_dict().items()}
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    first, again, other = (training.changed(images, labels, step_generator(CPU, i)) for i in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad
    assert training.backbone.training
    assert all(parameter.grad is None for parameter in training.parameters())
    for name, value in training.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_run_writes_encoder_head_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text(MODEL)
    given = ["--config", "model.yaml", "--trainer.max_epochs=6", "--trainer.check_val_every_n_epoch=6", "--name=moved"]
    cli = train_encoder(["fit", *arguments("encoders/digits_noise"), *QUIET, *given])
    path = tmp_path / "runs" / "moved" / "moved.safetensors"
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["recipe"]["epsilon"] == 0.3
    assert record["recipe"]["steps"] == 2
    encoder, head = FrozenEncoder(CifarResNet(8, 4), weights=path, **WHOLE), LinearHead(path.with_stem("moved-head"))
    images, labels = digits_part("val")
    accuracy = float((head(encoder.encode(images)).argmax(1) == labels).double().mean())
    clean, adversarial = (record["validation"][f"val/{name}"] for name in ("accuracy", "adversarial_accuracy"))
    assert accuracy == pytest.approx(clean, abs=0.01)
    assert clean > adversarial > 0.2  # chance: 0.1
    assert cli.model.hparams["epsilon"] == 0.3


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"steps": 0}, {"weight_decay": -1.0}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AdversarialEncoderTraining(2, FrozenEncoder(CifarResNet(8, 2)), **wrong)

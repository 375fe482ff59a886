from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from datamodules import DigitsDataModule
from ellips.encoders import FrozenEncoder
from ellips.splits import digits_part
from ellips.types import FeatureBatch, ImageBatch


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="digits")


class Reader(L.LightningModule):
    """Trains a linear layer and remembers the batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(96, 10)
        self.batches: dict[str, list[FeatureBatch]] = {}

    def training_step(self, batch: FeatureBatch) -> torch.Tensor:
        self.batches.setdefault(f"train/{self.current_epoch}", []).append(batch)
        return nn.functional.cross_entropy(self.linear(batch.feature), batch.label)

    def validation_step(self, batch: FeatureBatch) -> None:
        self.batches.setdefault("val", []).append(batch)

    def test_step(self, batch: FeatureBatch) -> None:
        self.batches.setdefault("test", []).append(batch)

    def predict_step(self, batch: FeatureBatch) -> torch.Tensor:
        return batch.index

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run(encoder: FrozenEncoder, **arguments: object) -> tuple[Reader, L.Trainer, DigitsDataModule]:
    data, module = DigitsDataModule(encoder, batch_size=256, **arguments), Reader()
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, trainer, data


def test_known_before_setup(encoder: FrozenEncoder) -> None:
    data = DigitsDataModule(encoder)
    assert (data.num_classes, data.feature_dim, data.class_names[3]) == (10, 96, "3")
    assert data.encoder_fingerprint() == encoder.fingerprint()


def test_loaders_yield_unit_images_with_label_and_index(encoder: FrozenEncoder) -> None:
    data = DigitsDataModule(encoder, batch_size=100)
    batches = list(data.fit_dataloader())
    assert all(isinstance(batch, ImageBatch) for batch in batches)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(1168))
    images, labels = digits_part("train")
    assert torch.equal(torch.cat([batch.image for batch in batches]), images)
    assert torch.equal(torch.cat([batch.label for batch in batches]), labels)
    assert {len(batch.label) for batch in batches} == {97, 98}  # nearly equal, none larger than 100


def test_a_fit_sees_features_of_every_image_and_leaves_the_encoder_alone(encoder: FrozenEncoder) -> None:
    before = encoder.fingerprint()
    module, trainer, data = run(encoder)
    assert encoder.fingerprint() == before
    orders = [torch.cat([batch.index for batch in module.batches[f"train/{epoch}"]]) for epoch in (0, 1)]
    assert all(torch.equal(order.sort().values, torch.arange(1168)) for order in orders)
    assert not torch.equal(*orders)
    images, labels = digits_part("val")
    val = module.batches["val"][:2]
    assert all(batch.image is None for batch in val)
    torch.testing.assert_close(torch.cat([batch.feature for batch in val]), encoder(images), rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.cat([batch.label for batch in val]), labels)
    trainer.test(module, datamodule=data, verbose=False)
    assert sum(len(batch.index) for batch in module.batches["test"]) == 359
    predicted = trainer.predict(module, datamodule=data)
    assert torch.cat(predicted).tolist() == list(range(359))


def test_images_are_kept_when_asked(encoder: FrozenEncoder) -> None:
    module, _, _ = run(encoder, keep_images=True)
    image = module.batches["val"][0].image
    assert image is not None
    assert torch.equal(image, digits_part("val")[0][: len(image)])


def test_augmentation_touches_the_training_loader_alone(encoder: FrozenEncoder) -> None:
    data = DigitsDataModule(encoder, augment=lambda image: image.flip(-1), batch_size=2000)
    images = digits_part("train")[0]
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.image, images[batch.index].flip(-1))
    assert torch.equal(next(iter(data.fit_dataloader())).image, images)


def test_reading_in_other_processes_gives_the_same(encoder: FrozenEncoder) -> None:
    here = DigitsDataModule(encoder, batch_size=100).val_dataloader()
    there = DigitsDataModule(encoder, batch_size=100, num_workers=1).val_dataloader()
    for a, b in zip(here, there, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"eval_batch_size": -1}, {"num_workers": -1}])
def test_wrong_arguments_are_refused(encoder: FrozenEncoder, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        DigitsDataModule(encoder, **arguments)


def test_unknown_splits_and_stages_are_refused(encoder: FrozenEncoder) -> None:
    data = DigitsDataModule(encoder)
    with pytest.raises(ValueError, match="'validation'"):
        data.source("validation")
    with pytest.raises(ValueError, match="stage"):
        data.setup("training")

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import CertificationCallback
from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead
from ellips.lipschitz import JacobianNorm
from ellips.metrics import average_certified_radius, certified_accuracy
from ellips.types import FeatureBatch, HeadOutput, ImageBatch

SIZE = 24
RADII = [0.25, 0.5, 1.0]


class Blobs(L.LightningDataModule):
    """Images of two kinds through a linear encoder."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.label = torch.arange(SIZE) % 2
        self.image = (0.35 * torch.rand(SIZE, 1, 2, 2, generator=g) + 0.45 * self.label[:, None, None, None]).clamp(
            0, 1
        )
        self.label[:2] = 1 - self.label[:2]  # two that are classified wrongly
        self.encoder = FrozenEncoder(nn.Flatten(), in_channels=1, input_size=2)
        self.keep_images = False

    def loader(self) -> DataLoader:
        rows = [ImageBatch(self.image[i], self.label[i], torch.tensor(i)) for i in range(SIZE)]
        return DataLoader(rows, batch_size=10)

    train_dataloader = val_dataloader = test_dataloader = fit_dataloader = loader

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> FeatureBatch:
        image = batch.image if self.keep_images else None
        return FeatureBatch(self.encoder(batch.image), batch.label, batch.index, image)


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        data = Blobs()
        self.head = EllipsHead(4, 2, latent_dim=None, shrinkage=0.3).fit(data.encoder(data.image), data.label)
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.weight**2}

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> HeadOutput:
        latent = self.head.latents(batch.feature)
        return HeadOutput(latent, self.head.ellips(latent), batch.label, batch.index, batch.image)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, **options}
    return L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder, callbacks=list(callbacks), **quiet
    )


@pytest.mark.parametrize("stage", ["val", "test"])
def test_logged_numbers_are_those_of_all_images(tmp_path: Path, stage: str) -> None:
    run, data, module = trainer(tmp_path, CertificationCallback(RADII)), Blobs(), Module()
    logged = (run.validate if stage == "val" else run.test)(module, data, verbose=False)[0]
    latents = module.head.latents(data.encoder(data.image))
    for method in ("theorem", "pairwise", "exact"):
        certificate = module.head.ellips.certify(latents, method)
        what = (certificate.radius, certificate.prediction, data.label)
        for radius, expected in zip(RADII, certified_accuracy(*what, RADII).tolist(), strict=True):
            assert logged[f"{stage}/certified_accuracy/{method}@{radius:g}"] == pytest.approx(expected)
        average = average_certified_radius(*what).item()
        assert logged[f"{stage}/average_certified_radius/{method}"] == pytest.approx(average)
    assert logged[f"{stage}/clean_accuracy"] == pytest.approx(22 / 24)
    assert (tmp_path / f"certified_accuracy_{stage}_latent_exact.png").stat().st_size > 10_000


def test_the_input_curve_stands_apart_from_the_latent_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = CertificationCallback(RADII, source=JacobianNorm(ball_radius=0.4), input_radii=[0.25, 0.4, 0.5])
    run, module = trainer(tmp_path, callback), Module()
    logged = run.test(module, Blobs(), verbose=False)[0]
    # The encoder only flattens: its constant is 1, and the ball caps the radius.
    assert logged["test/certified_accuracy/input_estimated_exact@0.25"] == pytest.approx(
        logged["test/certified_accuracy/latent-exact@0.25"], abs=1e-6
    )
    assert logged["test/certified_accuracy/input_estimated_exact@0.4"] > 0
    assert logged["test/certified_accuracy/input_estimated_exact@0.5"] == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "certified_accuracy_test_latent_exact.png",
        "certified_accuracy_test_input_estimated.png",
    }
    printed = capsys.readouterr().out
    latent, image = printed.split("Certified accuracy on 24 test images")[1:]
    assert all(method in latent for method in ("theorem", "pairwise", "exact", "91.7"))
    assert "estimated: sampled, no guarantee" in " ".join(image.split())
    assert "theorem" not in image


def test_the_input_curve_is_left_out_at_stages_not_asked_for(tmp_path: Path) -> None:
    run = trainer(tmp_path, CertificationCallback(RADII, source=JacobianNorm()))
    assert not any("input" in name for name in run.validate(Module(), Blobs(), verbose=False)[0])


def test_a_checkpoint_can_follow_the_certified_accuracy(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/certified_accuracy/latent-exact@0.25", mode="max")
    run = trainer(tmp_path, CertificationCallback(RADII), best, enable_checkpointing=True)
    run.fit(Module(), Blobs())
    assert best.best_model_score is not None
    assert best.best_model_score == run.callback_metrics["val/certified_accuracy/latent-exact@0.25"] > 0


def test_figures_go_to_the_logger_and_its_folder(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    run = trainer(tmp_path, CertificationCallback(RADII), logger=logger)
    run.validate(Module(), Blobs(), verbose=False)
    assert (tmp_path / "run" / "certified_accuracy_val_latent_exact.png").exists()
    logger.experiment.flush()
    events = b"".join(path.read_bytes() for path in (tmp_path / "run").glob("events*"))
    assert b"certified_accuracy_val_latent_exact" in events


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["best"]}, "`methods` out of"),
        ({"radii": [1.0, 0.5]}, "strictly ascending"),
        ({"input_stages": ["train"]}, "`input_stages` out of"),
        ({"confidence": 0.0}, "confidence"),
        ({"num_points": 1}, "num_points"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CertificationCallback(**arguments)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    class Headless(L.LightningModule):
        def test_step(self, batch: FeatureBatch, batch_idx: int) -> None: ...

    with pytest.raises(TypeError, match="Expected a module with a `head`"):
        trainer(tmp_path, CertificationCallback()).test(Headless(), Blobs(), verbose=False)

    class Silent(Module):
        def test_step(self, batch: FeatureBatch, batch_idx: int) -> None: ...

    with pytest.raises(TypeError, match="return a HeadOutput but got NoneType"):
        trainer(tmp_path, CertificationCallback()).test(Silent(), Blobs(), verbose=False)
    source = CertificationCallback(source=JacobianNorm())
    features = [FeatureBatch(torch.zeros(4), torch.tensor(0), torch.tensor(0), torch.zeros(1, 2, 2))]
    with pytest.raises(ValueError, match="Expected an `encoder` in the datamodule"):
        trainer(tmp_path, source).test(Module(), DataLoader(features), verbose=False)

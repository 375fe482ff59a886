from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from callbacks import CertificationCallback
from ellips.certificates.geometry import Geometry
from ellips.lipschitz import JacobianNorm
from ellips.metrics import average_certified_radius, certified_accuracy
from ellips.types import FeatureBatch
from tests.callbacks.blobs import Blobs, Module

RADII = [0.25, 0.5, 1.0]


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
            assert logged[f"{stage}/certified_accuracy/latent-{method}@{radius:g}"] == pytest.approx(expected)
        average = average_certified_radius(*what).item()
        assert logged[f"{stage}/average_certified_radius/latent-{method}"] == pytest.approx(average)
        relative = (certificate.radius / module.head.ellips.scale).clamp(max=1) * (certificate.prediction == data.label)
        assert logged[f"{stage}/relative_radius/latent-{method}"] == pytest.approx(float(relative.mean()))
    assert logged[f"{stage}/clean_accuracy"] == pytest.approx(22 / 24)
    assert (tmp_path / f"certified_accuracy_{stage}_latent_exact.png").stat().st_size > 10_000


def test_the_input_curve_stands_apart_from_the_latent_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = CertificationCallback(RADII, certifiers=[JacobianNorm(ball_radius=0.4)], input_radii=[0.25, 0.4, 0.5])
    run, module = trainer(tmp_path, callback), Module()
    logged = run.test(module, Blobs(), verbose=False)[0]
    # The encoder only flattens: its constant is 1, and the ball caps the radius.
    accuracy = "test/certified_accuracy"
    series = "estimated/input-exact-jacobian-norm"
    assert logged[f"{accuracy}/{series}@0.25"] == pytest.approx(logged[f"{accuracy}/latent-exact@0.25"], abs=1e-6)
    assert logged[f"{accuracy}/{series}@0.4"] > 0
    assert logged[f"{accuracy}/{series}@0.5"] == 0
    assert 0 < logged[f"test/average_certified_radius/{series}"] <= 0.4
    assert not any("relative_radius/estimated" in name for name in logged)  # images share one unit as it is
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "certified_accuracy_test_latent_exact.png",
        "certified_accuracy_test_input_estimated.png",
    }
    printed = capsys.readouterr().out
    latent, image = printed.split("Certified accuracy on 24 test images")[1:]
    assert all(method in latent for method in ("theorem", "pairwise", "exact", "91.7"))
    assert "estimated: sampled, no guarantee" in " ".join(image.split())
    assert "theorem" not in image


def test_closed_forms_by_weyl_are_named_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Geometry, "affordable", False)
    trainer(tmp_path, CertificationCallback(RADII)).test(Module(), Blobs(), verbose=False)
    printed = capsys.readouterr().out
    assert "theorem (Weyl)" in printed
    assert "pairwise (Weyl)" in printed
    assert "exact (Weyl)" not in printed


def test_the_input_curve_is_left_out_at_stages_not_asked_for(tmp_path: Path) -> None:
    run = trainer(tmp_path, CertificationCallback(RADII, certifiers=[JacobianNorm()]))
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
        ({"methods": ["best"]}, "`methods` to be one of"),
        ({"radii": [1.0, 0.5]}, "strictly ascending"),
        ({"input_stages": ["train"]}, "`input_stages` to be one of"),
        ({"input_method": "margin"}, "`input_method` to be one of"),
        ({"confidence": 0.0}, "confidence"),
        ({"num_points": 1}, "num_points"),
        ({"max_radius": 0.0}, "`max_radius` to be positive"),
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
    source = CertificationCallback(certifiers=[JacobianNorm()])
    features = [FeatureBatch(torch.zeros(4), torch.tensor(0), torch.tensor(0), torch.zeros(1, 2, 2))]
    with pytest.raises(ValueError, match="Expected an `encoder` in the datamodule"):
        trainer(tmp_path, source).test(Module(), DataLoader(features), verbose=False)


def test_an_evaluation_of_one_image_is_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, CertificationCallback(RADII, certifiers=[JacobianNorm()]), limit_test_batches=1)
    data = Blobs()
    data.image, data.label = data.image[5:6], data.label[5:6]
    logged = run.test(Module(), data, verbose=False)[0]
    assert logged["test/clean_accuracy"] == 1
    assert logged["test/average_certified_radius/latent-exact"] > 0
    assert logged["test/average_certified_radius/estimated/input-exact-jacobian-norm"] > 0

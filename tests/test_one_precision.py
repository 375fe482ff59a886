"""One encoder, one precision: features, caches, checkpoints, certificates and audits share it, or are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor, nn

from datamodules import CacheMismatchError, DigitsDataModule
from ellips import EllipsHead, FrozenEncoder, ImageClassifier
from ellips.commands.audit import AttackSettings, audit
from ellips.commands.certify import main as certify
from ellips.encoders import Denoised, Denoiser
from ellips.errors import EncoderMismatchError
from ellips.files import Journal, ResultsFolder
from ellips.files.latents import write_latent
from ellips.input_certifiers import ByConstant, MarginClever, SmoothedDecision, SmoothedEncoder
from ellips.lipschitz import Clever, JacobianNorm, KnownConstant, SpectralProduct
from ellips.lipschitz.base import in_float64, validate_by_image
from ellips.lipschitz.capture import UnprovenOperationError
from ellips.precision import Precision
from ellips.types import Series
from lightning_modules import GenEllips

PRECISIONS: tuple[Precision, ...] = ("32", "16", "bf16")
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def digits_encoder(precision: Precision) -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="digits", precision=precision)


def classifier(precision: Precision) -> ImageClassifier:
    encoder = digits_encoder(precision)
    return ImageClassifier(encoder, EllipsHead(96, 3, latent_dim=None, shrinkage=0.5).fit(encoder(IMAGES), LABELS))


def save(path: Path, encoder: FrozenEncoder, *, fingerprint: bool = True) -> Path:
    """Gaussians on the features of the digits, as training leaves them."""
    data = DigitsDataModule(encoder, batch_size=2000)
    batch = data.encode(next(iter(data.fit_dataloader())))
    head = EllipsHead(96, 10, latent_dim=None, shrinkage=0.3).fit(batch.feature, batch.label)
    content: dict[str, Any] = {"state_dict": {f"head.{k}": v for k, v in head.state_dict().items()}}
    content |= {"head": head.config, "encoder_fingerprint": encoder.fingerprint() if fingerprint else None}
    torch.save(content, path)
    return path


# ------------------------------------------------------------------ the encoder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_encoder_computes_in_its_own_precision_whatever_is_set_around_it(precision: Precision) -> None:
    encoder = digits_encoder(precision)
    alone, encoded = encoder(IMAGES), encoder.encode(IMAGES)
    seen: list[object] = []
    handle = encoder.backbone.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for around in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=around):
                assert torch.equal(encoder(IMAGES), alone)
                assert torch.equal(encoder.encode(IMAGES), encoded)
    finally:
        torch.set_float32_matmul_precision(before)
        handle.remove()
    assert seen == ["highest"] * 4
    half = {"16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    assert alone.dtype == torch.float32
    assert torch.equal(alone.to(half).float(), alone)  # so that a cache of that type loses nothing
    exact = digits_encoder("32")(IMAGES)
    assert torch.equal(alone, exact) == (precision == "32")
    torch.testing.assert_close(alone, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


def test_fingerprints_differ_in_the_precision_and_in_nothing_else() -> None:
    plain = digits_encoder("32").fingerprint()
    assert plain["precision"] == "32"
    assert digits_encoder("bf16").fingerprint() == {**plain, "precision": "bf16"}
    with pytest.raises(ValueError, match="`precision` to be one of"):
        FrozenEncoder("test_resnet", weights="digits", precision="tf32")


def test_a_denoiser_computes_in_the_precision_of_its_encoder() -> None:
    class Scaled(Denoiser):
        seen: torch.dtype

        def __init__(self) -> None:
            super().__init__(0.25, 1)
            self.layer = nn.Conv2d(1, 1, 1)

        def denoise(self, images: Tensor) -> Tensor:
            found: Tensor = self.layer(images)
            self.seen = found.dtype
            return found

    for precision, dtype in (("32", torch.float32), ("bf16", torch.bfloat16)):
        denoised = Denoised(digits_encoder(precision), Scaled())
        for run in (denoised, denoised.encode):
            run(IMAGES)
            assert denoised.denoiser.seen == dtype
        assert denoised.fingerprint()["precision"] == precision


# ------------------------------------------------------------------ features


@pytest.mark.parametrize(("written", "read"), [("bf16", "32"), ("32", "bf16"), ("16", "bf16")])
def test_a_cache_of_another_precision_is_refused(tmp_path: Path, written: Precision, read: Precision) -> None:
    DigitsDataModule(digits_encoder(written), cache_dir=tmp_path, batch_size=512).open_cache("val")
    with pytest.raises(CacheMismatchError, match=rf"identity\.precision: expected '{read}.* but got '{written}"):
        DigitsDataModule(digits_encoder(read), cache_dir=tmp_path).open_cache("val")


@pytest.mark.parametrize(("old", "accepted"), [("32", True), ("bf16", False)])
def test_an_old_cache_is_of_the_precision_that_it_names(tmp_path: Path, old: Precision, accepted: bool) -> None:
    encoder = digits_encoder(old)
    folder = DigitsDataModule(encoder, cache_dir=tmp_path, batch_size=512).open_cache("val").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["identity"]["precision"] = old  # as version 0.1 wrote it, whose half precision was not rounded at the end
    (folder / "manifest.json").write_text(json.dumps(manifest))
    again = DigitsDataModule(encoder, cache_dir=tmp_path)
    if accepted:
        assert len(again.open_cache("val")) == 270
    else:
        with pytest.raises(CacheMismatchError, match="delete this one to have it made again"):
            again.open_cache("val")


def test_features_are_stored_with_as_many_digits_as_are_certified(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the encoder precision='bf16'"):
        DigitsDataModule(digits_encoder("32"), cache_dir=tmp_path, cache_dtype="bfloat16")
    with pytest.raises(ValueError, match="of precision '16' but got 'bfloat16'"):
        DigitsDataModule(digits_encoder("16"), cache_dir=tmp_path, cache_dtype="bfloat16")
    encoder = digits_encoder("bf16")
    data = DigitsDataModule(encoder, cache_dir=tmp_path, cache_dtype="bfloat16", batch_size=512, keep_images=True)
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch.feature, encoder.encode(batch.image))


def test_the_precision_of_the_data_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"FrozenEncoder\(\.\.\., precision='bf16'\)"):
        DigitsDataModule(digits_encoder("32"), precision="bf16")


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_a_trainer_that_rounds_features_is_refused(tmp_path: Path, precision: Any) -> None:  # noqa: ANN401
    trainer = quiet_trainer(tmp_path, precision=precision)
    data = DigitsDataModule(digits_encoder("32"))
    with pytest.raises(ValueError, match=f"{precision.split('-')[0]}-mixed"):
        trainer.fit(GenEllips(num_classes=10, in_features=96, latent_dim=2, hidden_dim=0), datamodule=data)


# ------------------------------------------------------------------ checkpoints


def quiet_trainer(folder: Path, **arguments: Any) -> L.Trainer:
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, **off, **arguments
    )


@pytest.mark.parametrize(("fitted", "used"), [("bf16", "32"), ("32", "bf16"), ("16", "bf16")])
def test_a_checkpoint_of_another_precision_is_not_certified(tmp_path: Path, fitted: Precision, used: Precision) -> None:
    path = save(tmp_path / "last.ckpt", digits_encoder(fitted))
    with pytest.raises(
        EncoderMismatchError, match=rf"precision: '{fitted}' against '{used}'.*its `precision` included"
    ):
        ImageClassifier.from_checkpoint(path, digits_encoder(used))
    assert ImageClassifier.from_checkpoint(path, digits_encoder(fitted)).encoder.precision == fitted


def test_a_checkpoint_that_names_none_is_of_float32(tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt", digits_encoder("32"))
    content = torch.load(path, weights_only=True)
    del content["encoder_fingerprint"]["precision"]  # as version 0.1 wrote it
    torch.save(content, path)
    ImageClassifier.from_checkpoint(path, digits_encoder("32"))
    with pytest.raises(EncoderMismatchError, match="precision: '32' against 'bf16'"):
        ImageClassifier.from_checkpoint(path, digits_encoder("bf16"))


def test_training_in_one_precision_is_not_resumed_or_tested_in_another(tmp_path: Path) -> None:
    def run(precision: Precision, ckpt: Path | None, stage: Callable[[L.Trainer], Any]) -> L.Trainer:
        trainer = quiet_trainer(tmp_path)
        module = GenEllips(num_classes=10, in_features=96, latent_dim=2, hidden_dim=0, shrinkage=0.5)
        stage(trainer)(module, datamodule=DigitsDataModule(digits_encoder(precision), batch_size=584), ckpt_path=ckpt)
        return trainer

    trainer = run("bf16", None, lambda t: t.fit)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for stage in (lambda t: t.fit, lambda t: t.test):
        with pytest.raises(EncoderMismatchError, match="precision: 'bf16' against '32'"):
            run("32", tmp_path / "last.ckpt", stage)


# ------------------------------------------------------------------ certificates


def certify_run(folder: Path, checkpoint: Path, precision: Precision, *more: str) -> int:
    init = {"model": "test_resnet", "weights": "digits", "precision": precision}
    encoder = {"class_path": "ellips.encoders.FrozenEncoder", "init_args": init}
    data = {"class_path": "ellips.datamodules.DigitsDataModule", "init_args": {"encoder": encoder}}
    trainer = {"accelerator": "cpu", "devices": 1}
    content = {"data": data, "trainer": trainer, "ckpt_path": str(checkpoint), "methods": ["exact"]}
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    return certify(["--config", str(folder / "c.yaml"), "--out", str(folder / "out"), "--skip", "90", *more])


def test_a_certification_run_keeps_to_one_precision(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "last.ckpt", digits_encoder("bf16"))
    assert certify_run(tmp_path, checkpoint, "bf16") == 0
    with pytest.raises(EncoderMismatchError, match="precision"):
        certify_run(tmp_path, checkpoint, "32", "--overwrite", "true")
    settings = json.loads((tmp_path / "out" / "journal" / "settings.json").read_text())
    assert settings["encoder"] == digits_encoder("bf16").fingerprint()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["encoder"]["precision"] == "bf16"
    # A checkpoint that knows no encoder cannot refuse; what the run recorded does.
    save(checkpoint, digits_encoder("bf16"), fingerprint=False)
    with pytest.raises(ValueError, match=r"same settings but it differs in encoder .*'precision': '32'"):
        certify_run(tmp_path, checkpoint, "32")
    # Nor is it audited with another.
    folder = ResultsFolder(tmp_path / "out")
    folder.config.write_text(folder.config.read_text().replace("precision: bf16", "precision: '32'"))
    with pytest.raises(EncoderMismatchError, match="precision: 'bf16' against '32'"):
        audit(folder, AttackSettings())


def as_version_0_1(folder: ResultsFolder) -> None:
    """Let a run's journal be one of version 0.1: no encoder, `sources`, no checksums."""
    settings = json.loads(folder.settings.read_text())
    journal = Journal(folder, [Series("latent", "exact")], settings)
    latents = journal.latents()
    rows, binary = folder.journal / "rows-0.csv", folder.journal / "latents-0.bin"
    rows.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in rows.read_text().splitlines()))
    with binary.open("wb") as file:
        for index, latent in latents.items():
            write_latent(file, index, latent, None)
    old = {name: value for name, value in settings.items() if name not in ("encoder", "certifiers", "checksums")}
    folder.settings.write_text(json.dumps(old | {"sources": []}))


def test_old_results_are_audited_in_float32(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "last.ckpt", digits_encoder("32"), fingerprint=False)
    certify_run(tmp_path, checkpoint, "32")
    folder = ResultsFolder(tmp_path / "out")
    as_version_0_1(folder)
    saved = yaml.safe_load(folder.config.read_text())
    saved["data"]["init_args"]["precision"] = "bf16"  # of the features that version 0.1 fitted to
    folder.config.write_text(yaml.safe_dump(saved))
    shutil.copy(folder.config, tmp_path / "kept.yaml")
    assert set(audit(folder, AttackSettings(steps=1), 1)["series"]) == {"latent-exact"}
    saved["data"]["init_args"]["encoder"]["init_args"]["precision"] = "bf16"
    folder.config.write_text(yaml.safe_dump(saved))
    with pytest.raises(EncoderMismatchError, match="precision: '32' against 'bf16'"):
        audit(folder, AttackSettings(steps=1), 1)


@pytest.mark.parametrize("precision", ["16", "bf16"])
def test_half_precision_is_never_deterministic(precision: Precision) -> None:
    encoder = FrozenEncoder(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), in_channels=1, input_size=8, precision=precision
    )
    half = ImageClassifier(encoder, EllipsHead(4, 3, latent_dim=None, shrinkage=0.5).fit(encoder(IMAGES), LABELS))
    for source in (SpectralProduct(), KnownConstant(1.0), KnownConstant(1.0, soundness="probabilistic")):
        with pytest.raises(UnprovenOperationError):
            half.certify(IMAGES[:1], source)
    encoder.precision = "32"
    assert half.certify(IMAGES[:1], SpectralProduct()).soundness == "deterministic"
    encoder.precision = precision  # what was captured before is not believed
    with pytest.raises(UnprovenOperationError, match="one precision throughout"):
        half.certify(IMAGES[:1], SpectralProduct())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_way_to_the_image_runs_the_encoder_in_its_precision(precision: Precision) -> None:
    chain = classifier(precision)
    seen: set[torch.dtype] = set()
    layer = next(part for part in chain.encoder.modules() if isinstance(part, nn.Conv2d))
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    half = {"16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    clever = {"num_batches": 5, "num_samples": 4}
    for certifier in (
        JacobianNorm(2),
        Clever(0.1, **clever),
        MarginClever(0.1, **clever),
        SmoothedDecision(num_samples=20, num_selection=4),
    ):
        seen.clear()
        chain.certify(IMAGES[:1], certifier)
        # Those that vote are held in float32, too: there a dependence on the batch shows.
        assert seen == ({half, torch.float32} if isinstance(certifier, SmoothedDecision) else {half})
    assert chain.encoder.precision == precision


def test_slopes_of_a_network_agree_between_precisions() -> None:
    full, half = (classifier(p).latents for p in ("32", "bf16"))
    a, b = (JacobianNorm(10, 0.0)(f, IMAGES[:4]).constant for f in (full, half))
    torch.testing.assert_close(a, b, rtol=0.05, atol=0)


def test_an_audit_attacks_the_predictions_that_were_made_and_the_slope_of_the_exact_network() -> None:
    half = classifier("bf16")
    target = ByConstant(JacobianNorm()).target(half.chain)
    assert target.function is not None
    points = IMAGES[:8].double()
    assert torch.equal(target.predict(points), half.chain.decide(IMAGES[:8]))
    exact = in_float64(ImageClassifier(digits_encoder("32"), half.head).latents)(points)
    torch.testing.assert_close(target.function(points), exact, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(exact, half.latents(IMAGES[:8]).double(), rtol=1e-5, atol=0)


def test_dependence_on_the_batch_does_not_hide_behind_half_precision() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            values = images.flatten(1)
            return values + 0.2 * (values.mean() - 0.5)  # less than is allowed for rounding in half precision

    for precision in PRECISIONS:
        encoder = FrozenEncoder(Mean(), in_channels=1, precision=precision)
        with pytest.raises(ValueError, match="maps each image by itself"):
            validate_by_image(encoder, IMAGES[:3], 0.25)
        assert encoder.precision == precision
        validate_by_image(digits_encoder(precision), IMAGES[:3], 0.25)
    chain = classifier("bf16").chain
    SmoothedEncoder(num_samples=20, norm_bound=100.0).smooth(chain.latents, IMAGES[:1])

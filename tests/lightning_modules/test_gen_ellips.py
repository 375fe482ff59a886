"""GenEllips: the exact fit, checkpoints, the encoder's fingerprint, optimiser groups."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ellips import Ellips
from ellips.errors import EncoderMismatchError, NotFittedError
from ellips.gaussians import fit_shrunk, sketch
from ellips.head import EllipsHead
from ellips.losses import CertifiedRadius, CodingRateReduction, Isotropy, LatentLoss, ScoreCrossEntropy
from ellips.regularization_search import RegularizationSearch, select_regularization
from ellips.types import HeadOutput
from lightning_modules import GenEllips, Optimization
from tests.lightning_modules.feature_data import FeatureData, latents_of
from tests.processes import run_apart


def make_module(**options: Any) -> GenEllips:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "latent_dim": 5,
        "hidden_dim": 16,
        "shrinkage": 0.1,
        "objective": [CodingRateReduction(warmup_steps=3), Isotropy(weight=0.1, start_step=3)],
        "optimization": Optimization("adamw", learning_rate=1e-3),
    }
    return GenEllips(10, 4, **{**settings, **options})


def make_trainer(folder: Path, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**settings, **options})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[L.Trainer, GenEllips, FeatureData, Path]:
    folder = tmp_path_factory.mktemp("fitted")
    data, module = FeatureData(), make_module()
    trainer = make_trainer(folder, callbacks=[ModelCheckpoint(folder, save_last=True)])
    trainer.fit(module, data)
    return trainer, module, data, folder / "last.ckpt"


Fitted = tuple[L.Trainer, GenEllips, FeatureData, Path]


def test_the_mixture_is_the_exact_fit_of_the_training_split(fitted: Fitted) -> None:
    _, module, data, _ = fitted
    latents = latents_of(module.head, data.train)
    expected = Ellips(4, 5, shrinkage=0.1).fit(latents, data.train.label)
    torch.testing.assert_close(module.head.ellips.means, expected.means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.head.ellips.covariances, expected.covariances, rtol=1e-4, atol=1e-6)


def test_logs_losses_and_accuracies(fitted: Fitted) -> None:
    trainer, module, data, path = fitted
    names = {"train/loss", "train/CodingRateReduction", "train/Isotropy", "val/accuracy"}
    assert names <= trainer.callback_metrics.keys()
    metrics = make_trainer(path.parent).test(module, data, verbose=False)[0]
    scores = module.head.eval()(data.test.feature)
    accuracy = float((scores.argmax(1) == data.test.label).double().mean())
    assert metrics["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert accuracy > 0.6


def test_steps_return_what_callbacks_read(fitted: Fitted) -> None:
    _, module, data, path = fitted
    outputs = make_trainer(path.parent).predict(module, data)
    assert isinstance(outputs, list)
    assert all(isinstance(output, HeadOutput) for output in outputs)
    assert torch.equal(torch.cat([output.index for output in outputs]), torch.arange(110))
    assert torch.equal(torch.cat([output.label for output in outputs]), data.test.label)
    assert outputs[0].scores.dtype == torch.float64


@pytest.mark.parametrize(
    "options",
    [
        {"check_val_every_n_epoch": 2, "max_epochs": 3},
        {"val_check_interval": 2, "max_epochs": 1},
        {"max_steps": 7, "max_epochs": -1},
        {"limit_val_batches": 0, "max_epochs": 1},
    ],
)
def test_a_fit_never_ends_with_gaussians_older_than_the_projector(tmp_path: Path, options: dict[str, Any]) -> None:
    data, module = FeatureData(), make_module()
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    trainer = make_trainer(tmp_path, callbacks=[checkpoint], **options)
    trainer.fit(module, data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["mixture_step"] == saved["global_step"] == trainer.global_step
    expected = Ellips(4, 5, shrinkage=0.1).fit(latents_of(module.head, data.train), data.train.label)
    torch.testing.assert_close(module.head.ellips.means, expected.means, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_brings_back_mixture_and_fingerprint(fitted: Fitted) -> None:
    _, module, data, path = fitted
    loaded = GenEllips.load_from_checkpoint(path)
    assert loaded.encoder_fingerprint == data.encoder_fingerprint()
    assert loaded.head.ellips.digest() == module.head.ellips.digest()
    assert torch.equal(latents_of(loaded.head, data.test), latents_of(module.head, data.test))
    head = EllipsHead.from_checkpoint(path)
    assert head.ellips.digest() == module.head.ellips.digest()
    assert torch.equal(latents_of(head, data.test), latents_of(module.head, data.test))


def test_a_checkpoint_holds_the_mixture_once_and_no_moments(fitted: Fitted) -> None:
    """Of many wide classes each of them would be as large as the checkpoint itself."""
    _, module, data, path = fitted
    module.head.ellips.certify(latents_of(module.head, data.test))  # so that there is something remembered of it
    found: list[Tensor] = []

    def collect(value: object) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for each in value.values():
                collect(each)
        elif isinstance(value, list | tuple):
            for each in value:
                collect(each)

    collect(torch.load(path, weights_only=True))
    matrices = [value for value in found if value.ndim == 3]
    assert [value.shape for value in matrices] == [(4, 5, 5)]
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in found)  # nothing behind them either
    assert torch.equal(matrices[0], module.head.ellips.precision_factors)


def reload(checkpoint: Path, result: Path) -> None:
    head, data = EllipsHead.from_checkpoint(checkpoint), FeatureData()
    latents = head.latents(data.test.feature).detach()
    certificates = {m: head.ellips.certify(latents, method=m) for m in ("theorem", "pairwise", "exact")}
    torch.save({m: (c.prediction, c.radius, c.rival) for m, c in certificates.items()}, result)


def test_a_new_process_predicts_and_certifies_the_same(fitted: Fitted, tmp_path: Path) -> None:
    _, module, data, path = fitted
    run_apart(reload, path, tmp_path / "out.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for method, there in torch.load(tmp_path / "out.pt", weights_only=True).items():
            here = module.head.ellips.certify(latents_of(module.head, data.test), method=method)
            assert all(
                torch.equal(*pair) for pair in zip(there, (here.prediction, here.radius, here.rival), strict=True)
            )
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("task", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_made_with_another_encoder_is_refused(fitted: Fitted, tmp_path: Path, task: str) -> None:
    *_, path = fitted
    trainer = make_trainer(tmp_path, max_epochs=4, limit_val_batches=1, limit_test_batches=1)
    with pytest.raises(EncoderMismatchError, match="architecture: 'one' against 'two'"):
        getattr(trainer, task)(make_module(), datamodule=FeatureData(encoder="two"), ckpt_path=path)


def test_an_unfitted_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        make_trainer(tmp_path).test(make_module(), FeatureData(), verbose=False)


def test_wrong_labels_width_and_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features.*\(N, 10\)"):
        make_trainer(tmp_path).fit(make_module(), FeatureData(width=11))
    with pytest.raises(ValueError, match=r"labels.*\[0, 4\)"):
        make_trainer(tmp_path).fit(make_module(), FeatureData(classes=5))
    with pytest.raises(ValueError, match="class 3 had none"):
        make_trainer(tmp_path).fit(make_module(), FeatureData(classes=3))


def test_a_trainer_without_a_fit_dataloader_is_refused(tmp_path: Path) -> None:
    data = FeatureData()
    with pytest.raises(TypeError, match="fit_dataloader"):
        make_trainer(tmp_path).fit(make_module(), data.train_dataloader(), data.val_dataloader())


def test_a_slow_exact_fit_is_warned_about_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="cache the features") as caught:
        make_trainer(tmp_path).fit(make_module(slow_fit_seconds=0.0), FeatureData())
    assert sum("cache the features" in str(warning.message) for warning in caught) == 1


def test_parameter_groups_have_their_own_weight_decay() -> None:
    module = make_module(optimization=Optimization(weight_decay=0.1, pre_feature_weight_decay=0.2, learning_rate=0.3))
    groups = module.optimization.build_optimizer(module.head).param_groups
    assert [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("pre_feature", 0.3, 0.2, 6),
        ("feature_head", 0.3, 0.1, 2),
    ]
    assert groups[0]["momentum"] == 0.9


def test_the_cosine_schedule_ends_at_zero(tmp_path: Path) -> None:
    module = make_module(optimization=Optimization("sgd", learning_rate=0.1, schedule="cosine"))
    trainer = make_trainer(tmp_path)
    trainer.fit(module, FeatureData())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)
    constant = make_module(optimization=Optimization("sgd", learning_rate=0.1))
    trainer = make_trainer(tmp_path)
    trainer.fit(constant, FeatureData())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("options", "match"),
    [({"optimizer": "lion"}, "optimizer"), ({"schedule": "step"}, "schedule"), ({"learning_rate": -1.0}, "learning")],
)
def test_unknown_optimisation_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Optimization(**options)


def test_regularisation_is_chosen_on_the_validation_split_and_travels_with_the_checkpoint(tmp_path: Path) -> None:
    data, search = FeatureData(), RegularizationSearch(0.5, pooling=(0.0, 0.5), shrinkage=(0.0, 0.2, 0.6))
    module = make_module(regularization=search)
    trainer = make_trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path, filename="last")])
    trainer.fit(module, data)
    moments, latents = module.head.moments.compute(), latents_of(module.head, data.val)
    best, _ = select_regularization(moments, latents, data.val.label, search)
    assert module.head.ellips.regularization == best.regularization
    expected = Ellips(4, 5, **asdict(best.regularization)).fit_moments(*moments)
    torch.testing.assert_close(module.head.ellips.covariances, expected.covariances)
    loaded = GenEllips.load_from_checkpoint(tmp_path / "last.ckpt")
    for head in (loaded.head, EllipsHead.from_checkpoint(tmp_path / "last.ckpt")):
        assert head.ellips.regularization == best.regularization
        assert {name: head.config[name] for name in ("pooling", "shrinkage")} == asdict(best.regularization)


@pytest.mark.parametrize("estimator", ["ledoit_wolf", "oas"])
def test_scikit_learns_shrinkage_can_take_the_place_of_ours(
    tmp_path: Path, estimator: Literal["ledoit_wolf", "oas"]
) -> None:
    data, module = FeatureData(), make_module(covariance_estimator=estimator)
    make_trainer(tmp_path, enable_checkpointing=False).fit(module, data)
    expected = fit_shrunk(Ellips(4, 5), latents_of(module.head, data.train), data.train.label, estimator)
    torch.testing.assert_close(module.head.ellips.covariances, expected.covariances, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [ScoreCrossEntropy("fitted"), CertifiedRadius(0.5, gaussians="fitted")])
def test_the_mixture_can_be_trained_from_the_exact_fit_on(tmp_path: Path, loss: LatentLoss) -> None:
    data = FeatureData()
    optimization = Optimization("adamw", learning_rate=0.0, mixture_learning_rate=1e-2)
    module = make_module(objective=[loss], optimization=optimization, train_mixture=True)
    groups = module.optimization.build_optimizer(module.head).param_groups
    assert [(g["name"], g["lr"]) for g in groups] == [("pre_feature", 0.0), ("feature_head", 0.0), ("mixture", 1e-2)]
    trainer = make_trainer(tmp_path, max_epochs=8, callbacks=[ModelCheckpoint(tmp_path, filename="last")])
    trainer.fit(module, data)
    latents, labels = latents_of(module.head, data.train), data.train.label
    # BatchNorm statistics moved with the epochs, so the start is fitted to the latents as they are now.
    start = Ellips(4, 5, shrinkage=0.1).fit(latents, labels)
    with torch.no_grad():
        assert float(loss(latents, labels, module.head.ellips)) < float(loss(latents, labels, start))
    head = EllipsHead.from_checkpoint(tmp_path / "last.ckpt")
    assert head.ellips.digest() == module.head.ellips.digest()
    assert not any(name.startswith("ellips") for name, _ in head.named_parameters())
    loaded = GenEllips.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.head.ellips.digest() == module.head.ellips.digest()


def test_an_objective_on_fitted_gaussians_finds_them_fitted(tmp_path: Path) -> None:
    module = make_module(objective=[CertifiedRadius(0.5, "pairwise", "fitted")])
    make_trainer(tmp_path, num_sanity_val_steps=0, enable_checkpointing=False).fit(module, FeatureData())
    assert module.head.ellips.is_fitted


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"covariance_estimator": "mcd"}, "covariance_estimator"),
        ({"covariance_estimator": "oas", "regularization": RegularizationSearch(0.5)}, "regularization"),
        ({"train_mixture": True}, "train_mixture"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_module(**options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_mixed_precision_keeps_the_certificate_in_float64(tmp_path: Path, accumulate: int) -> None:
    objective = [CodingRateReduction(), Isotropy(), CertifiedRadius(0.5)]
    data, module = FeatureData(), make_module(objective=objective)
    options = {"precision": "bf16-mixed", "accumulate_grad_batches": accumulate, "enable_checkpointing": False}
    trainer = make_trainer(tmp_path, **options)
    trainer.fit(module, data)
    assert trainer.global_step == 2 * -(-5 // accumulate)
    assert all(buffer.dtype == torch.float64 for buffer in (module.head.ellips.means, module.head.ellips.log_priors))
    output = trainer.predict(module, data)[0]  # type: ignore[index]
    certificate = module.head.ellips.certify(output.latent)
    assert output.scores.dtype == certificate.radius.dtype == torch.float64
    assert output.latent.dtype == torch.float32
    # Evaluated without autocast: the mixture is fitted to, and certifies, the float32 projector.
    latents = latents_of(module.head, data.train)
    expected = Ellips(4, 5, shrinkage=0.1).fit(latents, data.train.label)
    torch.testing.assert_close(module.head.ellips.means, expected.means, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_a_gpu_keeps_the_certificate_in_float64(tmp_path: Path) -> None:
    data, module = FeatureData(), make_module()
    trainer = make_trainer(tmp_path, accelerator="gpu", precision="16-mixed", enable_checkpointing=False)
    trainer.fit(module, data)
    assert module.head.ellips.means.dtype == torch.float64
    assert trainer.test(module, data, verbose=False)[0]["test/accuracy"] > 0.6


def test_what_a_sketch_misses_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "_FULL_ELEMENTS", 0)
    module = make_module(latent_dim=48, hidden_dim=64, covariance_type="low_rank", rank=1)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, FeatureData())
    expected = float(module.head.moments.held().missed.mean())
    assert expected > 1e-6
    assert float(trainer.callback_metrics["train/sketch_missed"]) == pytest.approx(expected)
    monkeypatch.undo()
    plain = make_trainer(tmp_path, max_epochs=1)
    plain.fit(make_module(), FeatureData())
    assert "train/sketch_missed" not in plain.callback_metrics

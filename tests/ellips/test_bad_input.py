"""What the library is given wrongly is refused in one message: what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from callbacks import CertificationCallback, GaussianityCallback, SafeRequeue
from datamodules import (
    CIFAR10DataModule,
    DigitsDataModule,
    GaussianMixtureDataModule,
    GaussianNoise,
    ImageFolderDataModule,
)
from datamodules.folder import Reading
from datamodules.manifest import Plan
from datamodules.selection import SelectionDataModule
from ellips import ClassMoments, Ellips, EllipsHead, FrozenEncoder, ImageClassifier
from ellips.certificates import Certificate, check
from ellips.encoders.preprocessing import Preprocess
from ellips.errors import NotFittedError, WeightsNotFoundError
from ellips.files import ImageRecord, load_certificates, read_tsv, save_certificates
from ellips.files.tsv import parse_time
from ellips.input_certifiers import MarginClever, SmoothedDecision, SmoothedEncoder
from ellips.lipschitz import Clever, JacobianNorm, KnownConstant
from ellips.losses import CertifiedRadius, ClassMMD, CodingRateReduction, Isotropy, Objective, ScoreCrossEntropy
from ellips.losses.coding_rate import coding_rate
from ellips.metrics import AverageCertifiedRadius, CertifiedAccuracy, CertifiedAccuracyCurve
from ellips.metrics.functional import clopper_pearson
from ellips.projector import Projector
from ellips.smoothing.plan import VotePlan
from ellips.theory.degradation import total_variation_bound
from ellips.theory.localization import Localizer
from ellips.theory.normality import mardia
from ellips.types import LipschitzBound, Series, weakest
from lightning_modules import GenEllips
from lightning_modules.optimization import Optimization

F = torch.float64
Z = torch.randn(40, 3, dtype=F, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 2
NAN, INF = float("nan"), float("inf")
FITTED = Ellips(2, 3, shrinkage=0.5).fit(Z, Y)
CERTIFICATE = FITTED.certify(Z)
MEANS, COVARIANCES, PRIORS = torch.zeros(2, 3, dtype=F), torch.eye(3, dtype=F).expand(2, 3, 3), torch.full((2,), 0.5)
ENCODER = FrozenEncoder(nn.Flatten(), in_channels=1, input_size=2)
IMAGES = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def with_value(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


def classifier() -> ImageClassifier:
    head = EllipsHead(4, 2, latent_dim=None, shrinkage=0.5)
    return ImageClassifier(ENCODER, head.fit(torch.rand(40, 4, generator=torch.Generator().manual_seed(0)), Y))


def bound(**changed: Any) -> LipschitzBound:
    given = {"constant": torch.ones(2), "ball_radius": torch.ones(2), "soundness": "estimated", "source": "x"}
    return LipschitzBound(**given | changed)


def folder(**changed: Any) -> ImageFolderDataModule:
    return ImageFolderDataModule(ENCODER, "nowhere", **changed)


def digits(**changed: Any) -> DigitsDataModule:
    return DigitsDataModule(ENCODER, **changed)


def plan(**changed: Any) -> Plan:
    return Plan(**{"identity": {}, "rows": 3, "feature_dim": 2} | changed)


def update(metric: Metric, radius: list[float], prediction: list[float], target: list[int]) -> None:
    metric.update(torch.tensor(radius), torch.tensor(prediction), torch.tensor(target))


def gen_ellips(**changed: Any) -> GenEllips:
    return GenEllips(**{"in_features": 4, "num_classes": 2, "latent_dim": 3, "hidden_dim": 4} | changed)


ACCURACY = CertifiedAccuracy([0.5])
ROWS: dict[str, list[tuple[Callable[[], Any], str]]] = {
    "a mixture's settings": [
        (lambda: Ellips(1, 3), "`num_classes` to be at least 2 but got 1"),
        (lambda: Ellips(2, 0), "`dim` to be at least 1 but got 0"),
        (lambda: Ellips(2, 3, covariance_type="best"), "`covariance_type` to be one of .* but got 'best'"),
        (lambda: Ellips(2, 3, pooling=1.5), "`pooling` to be in .* but got 1.5"),
        (lambda: Ellips(2, 3, pooling=NAN), "`pooling` to be in .* but got nan"),
        (lambda: Ellips(2, 3, shrinkage=-0.1), "`shrinkage` to be in .* but got -0.1"),
        (lambda: Ellips(2, 3, rank=1), "no `rank` with covariance_type='full' but got 1"),
        (lambda: Ellips(2, 3, covariance_type="low_rank", rank=9), "`rank` to be from 0 to .* but got 9"),
        (lambda: Ellips(2, 3, covariance_type="low_rank"), "`rank` to be from 0 to .* but got None"),
    ],
    "a mixture's parameters": [
        (lambda: Ellips.from_parameters(MEANS[0], COVARIANCES, PRIORS), r"`means` to have shape \(K, d\) but got"),
        (lambda: Ellips.from_parameters(MEANS, COVARIANCES[:1], PRIORS), r"`covariances` to have shape .* but got"),
        (lambda: Ellips.from_parameters(with_value(MEANS, NAN), COVARIANCES, PRIORS), "`means` to be finite but got"),
        (lambda: Ellips.from_parameters(MEANS, COVARIANCES, PRIORS[:1]), r"`priors` to have shape \(2,\) but got \(1,"),
        (lambda: Ellips.from_parameters(MEANS, COVARIANCES, PRIORS * 2), "`priors` to be positive and to sum to 1 but"),
        (lambda: Ellips.from_parameters(MEANS, COVARIANCES, PRIORS * NAN), "`priors` to be positive and to sum to 1"),
        (lambda: Ellips.from_parameters(MEANS, -COVARIANCES, PRIORS), "positive definite"),
        (lambda: Ellips.from_parameters(MEANS, COVARIANCES * NAN, PRIORS), "finite|positive definite"),
        (lambda: Ellips.from_parameters(MEANS, COVARIANCES + torch.triu(torch.ones(3, 3), 1), PRIORS), "symmetric"),
    ],
    "what a mixture is fitted to": [
        (lambda: Ellips(2, 3).fit(Z[:, :2], Y), r"to have shape \(N, 3\) but got \(40, 2\)"),
        (lambda: Ellips(2, 3).fit(Z, Y[:5]), r"`labels` to have shape \(40,\) but got \(5,\)"),
        (lambda: Ellips(2, 3).fit(Z, Y.double()), "`labels` to be an integer tensor but got torch.float64"),
        (lambda: Ellips(2, 3).fit(Z, Y.bool()), "`labels` to be an integer tensor but got torch.bool"),
        (lambda: Ellips(2, 3).fit(Z, Y + 1), r"`labels` to lie in \[0, 2\) but got values from 1 to 2"),
        (lambda: Ellips(2, 3).fit(Z, Y - 1), r"`labels` to lie in \[0, 2\) but got values from -1 to 0"),
        (lambda: Ellips(2, 3).fit(with_value(Z, NAN), Y), "to be finite but got NaN or infinite .* in row 0"),
        (lambda: Ellips(2, 3).fit(Z, Y * 0), "class"),
        (lambda: Ellips(2, 3).fit(Z[:0], Y[:0]), "class"),
        (lambda: Ellips(2, 3).fit(torch.ones_like(Z), Y), "class 0"),
    ],
    "points to certify": [
        (lambda: FITTED.certify(Z[0]), r"`z` to have shape \(N, 3\) but got \(3,\)"),
        (lambda: FITTED.certify(Z.long()), "`z` to be a floating-point tensor but got torch.int64"),
        (lambda: FITTED.certify(Z.tolist()), "`z` to be a floating-point tensor but got list"),
        (lambda: FITTED.certify(with_value(Z, INF)), "`z` to be finite but got"),
        (lambda: FITTED.certify(Z, method="best"), "`method` to be one of .* but got 'best'"),
        (lambda: FITTED.certify(Z, chunk_size=0), "`chunk_size` to be at least 1 but got 0"),
        (lambda: Ellips(2, 3).certify(Z), "a fitted mixture but this Ellips has none"),
        (lambda: Ellips(2, 3).digest(), "a fitted mixture but this Ellips has none"),
        (lambda: FITTED.sample(-1), "`n` to be at least 1 but got -1"),
        (lambda: check(FITTED, Z[:3], CERTIFICATE), "40|3"),
        (lambda: check(FITTED, with_value(Z, NAN), CERTIFICATE), "to be finite but got"),
    ],
    "certificates": [
        (lambda: replace(CERTIFICATE, radius=CERTIFICATE.radius[:3]), r"radius|shape"),
        (lambda: replace(CERTIFICATE, soundness="sure"), "`soundness` to be one of .* but got 'sure'"),
        (lambda: replace(CERTIFICATE, space="here"), "`space` to be one of .* but got 'here'"),
        (lambda: save_certificates("x.safetensors", CERTIFICATE, Z[:3], FITTED), "40 certificates, no indices and 3"),
        (lambda: load_certificates("nowhere.safetensors"), "a file of certificates at nowhere.* but there is none"),
        (lambda: ImageRecord(3, 0, 0, -1.0, 0.0), "`radius` of image 3 to be at least 0 but got -1.0"),
        (lambda: ImageRecord(3, 0, 0, NAN, 0.0), "`radius` of image 3 to be at least 0 but got nan"),
        (lambda: ImageRecord(3, 0, -1, 0.5, 0.0), "the abstention on image 3 to have radius 0 but got 0.5"),
        (lambda: parse_time("soon"), "`time` as H:MM:SS.ffffff or in seconds but got 'soon'"),
        (lambda: Series("here", "exact"), "`space` to be one of .* but got 'here'"),
        (lambda: weakest(), "at least one soundness class but got none"),
        (lambda: weakest("sure"), "`soundness` to be one of .* but got 'sure'"),
    ],
    "a head": [
        (lambda: EllipsHead(0, 2), "`in_features` to be at least 1 but got 0"),
        (lambda: EllipsHead(4, 1), "`num_classes` to be at least 2 but got 1"),
        (lambda: EllipsHead(4, 2, latent_dim=0), "`latent_dim` to be at least 1 but got 0"),
        (lambda: EllipsHead(4, 2, hidden_dim=-1), "`hidden_dim` to be at least 0 but got -1"),
        (lambda: EllipsHead(4, 2, latent_norm="cube"), "`latent_norm` to be one of .* but got 'cube'"),
        (lambda: EllipsHead(4, 2, latent_dim=None, latent_norm="ball"), "latent_norm='none' without a projector but"),
        (lambda: EllipsHead(4, 2, latent_dim=None).fit(Z, Y), r"to have shape \(N, 4\) but got \(40, 3\)"),
        (lambda: EllipsHead(4, 2, latent_dim=None)(torch.rand(2, 4)), "a fitted mixture"),
        (lambda: EllipsHead.from_checkpoint("nowhere.ckpt"), "a checkpoint at nowhere.ckpt but there is none"),
        (lambda: Projector(4, 2, 8, latent_norm="cube"), "`latent_norm` to be one of .* but got 'cube'"),
        (lambda: ClassMoments(0, 3), "at least"),
        (lambda: ClassMoments(2, 3).update(Z[:, :2], Y), r"to have shape \(N, 3\) but got \(40, 2\)"),
        (lambda: ClassMoments(2, 3).update(Z, Y + 1), r"`labels` to lie in \[0, 2\)"),
    ],
    "an encoder": [
        (lambda: FrozenEncoder("no_such_model", weights="random"), "no_such_model"),
        (lambda: FrozenEncoder("test_resnet"), "weights"),
        (lambda: FrozenEncoder("test_resnet", weights="nowhere.pth"), "nowhere.pth"),
        (lambda: FrozenEncoder("test_vit", weights="digits"), "`model` to be 'test_resnet'.* but got 'test_vit'"),
        (lambda: FrozenEncoder(nn.Flatten(), precision="8"), "`precision` to be one of .* but got '8'"),
        (lambda: FrozenEncoder(nn.Identity()), r"features of shape \(N, D\) but got"),
        (lambda: ENCODER(IMAGES[0]), r"\(N, C, H, W\)|shape"),
        (lambda: ENCODER((IMAGES * 255).to(torch.uint8)), "float"),
        (lambda: ENCODER(torch.rand(2, 3, 2, 2)), r"C in \[1\] but got \(2, 3, 2, 2\)"),
        (lambda: Preprocess(std=[0.0], mean=[0.0], in_channels=1), "`std`"),
        (lambda: Preprocess(mean=[0.0], std=[1.0, 1.0, 1.0], in_channels=3), "`mean`|mean"),
        (lambda: Preprocess(interpolation="best"), "`interpolation` to be one of .* but got 'best'"),
        (lambda: Preprocess(size=(0, 4)), "size"),
        (lambda: ImageClassifier(ENCODER, EllipsHead(5, 2)), "an encoder with 5 features.* but got one with 4"),
        (lambda: classifier().certify(IMAGES * 255), r"image values in \[0, 1\] but got"),
        (lambda: classifier().certify(with_value(IMAGES, NAN)), r"image values in \[0, 1\] but got"),
        (lambda: classifier().certify(IMAGES, method="best"), "`method` to be one of .* but got 'best'"),
    ],
    "sources of a constant": [
        (lambda: KnownConstant(-1.0), "`constant` to be at least 0 but got -1.0"),
        (lambda: KnownConstant(NAN), "`constant` to be at least 0 but got nan"),
        (lambda: KnownConstant(1.0, ball_radius=-1), "`ball_radius` to be at least 0 but got -1"),
        (lambda: KnownConstant(1.0, soundness="sure"), "`soundness` to be one of .* but got 'sure'"),
        (
            lambda: KnownConstant(1.0, soundness="exact"),
            "`soundness` to be one of .* but got 'exact'; a constant stands for an encoder",
        ),
        (lambda: Clever(radius=0), "`radius` to be positive and finite but got 0"),
        (lambda: Clever(num_batches=0), "`num_batches` to be at least 1 but got 0"),
        (lambda: Clever(sampling="best"), "`sampling` to be one of .* but got 'best'"),
        (lambda: Clever(chunk_size=0), "`chunk_size`"),
        (lambda: Clever(max_stretch=0.5), "`max_stretch` to be at least 1 but got 0.5"),
        (lambda: JacobianNorm(num_iterations=0), "`num_iterations` to be at least 1 but got 0"),
        (lambda: JacobianNorm(tolerance=-1), "`tolerance` to be at least 0 but got -1"),
        (lambda: JacobianNorm(ball_radius=0), "`ball_radius` to be positive but got 0"),
        (lambda: JacobianNorm()(nn.Flatten(), IMAGES[0]), r"`images` to be floating point of shape \(N, C, H, W\)"),
        (lambda: JacobianNorm()(nn.Flatten(), with_value(IMAGES, NAN)), "`images` to be finite but got"),
        (lambda: JacobianNorm()(nn.Sequential(nn.Dropout(), nn.Flatten()), IMAGES), "in eval mode but got `0`"),
        (lambda: bound(constant=torch.ones(2, 2)), r"`constant` to have shape \(N,\) but got \(2, 2\)"),
        (lambda: bound(constant=-torch.ones(2)), "every `constant` to be at least 0 but got -1"),
        (lambda: bound(soundness="sure"), "`soundness` to be one of .* but got 'sure'"),
    ],
    "certifiers": [
        (lambda: MarginClever(num_samples=0), "`num_samples` to be at least 1 but got 0"),
        (lambda: SmoothedEncoder(sigma=0), "`sigma` to be positive and finite but got 0"),
        (lambda: SmoothedEncoder(alpha=0), r"`alpha` to be in \(0, 1\) but got 0"),
        (lambda: SmoothedEncoder(num_images=0), "`num_images` to be at least 1 but got 0"),
        (lambda: SmoothedEncoder(concentration="best"), "`concentration` to be one of .* but got 'best'"),
        (lambda: SmoothedDecision(sigma=INF), "`sigma` to be positive and finite but got inf"),
        (lambda: SmoothedDecision(alpha=1), r"`alpha` to be in \(0, 1\) but got 1"),
        (lambda: SmoothedDecision(num_samples=0), "`num_samples` to be at least 1 but got 0"),
        (lambda: SmoothedDecision(stopping="late"), "`stopping` to be one of .* but got 'late'"),
        (lambda: SmoothedDecision(radii=(0.0,)), "`radii` to be positive and finite but got 0.0"),
        (lambda: VotePlan.fixed(0.5, 0, 0.1), "`draws` to be at least 1 but got 0"),
    ],
    "metrics": [
        (lambda: CertifiedAccuracy([]), "`radii` to be strictly ascending numbers of at least 0 but got"),
        (lambda: CertifiedAccuracy([0.5, 0.1]), "`radii` to be strictly ascending numbers of at least 0 but got"),
        (lambda: CertifiedAccuracy([NAN]), "`radii` to be strictly ascending numbers of at least 0 but got"),
        (lambda: CertifiedAccuracy([0.5], confidence=1), r"`confidence` to be in \(0, 1\) but got 1"),
        (lambda: CertifiedAccuracyCurve(max_radius=0), "`max_radius` to be positive and finite but got 0"),
        (lambda: CertifiedAccuracyCurve(num_points=1), "`num_points` to be at least 2 but got 1"),
        (lambda: CertifiedAccuracyCurve().compute(), "at least one certified point but got none"),
        (lambda: update(ACCURACY, [0.5], [1, 1], [1]), "to have one shape"),
        (lambda: update(ACCURACY, [1], [1], [1]), "`radius` to be floating point but got torch.int64"),
        (lambda: update(ACCURACY, [0.5], [1.0], [1]), "`prediction` to be an integer tensor but got torch.float32"),
        (lambda: update(ACCURACY, [-0.5], [1], [1]), "every `radius` to be at least 0 but got -0.5"),
        (lambda: update(ACCURACY, [NAN], [1], [1]), "every `radius` to be at least 0 but got nan"),
        (lambda: update(ACCURACY, [0.5], [-2], [1]), "every `prediction` to be at least -1 but got -2"),
        (lambda: update(AverageCertifiedRadius(), [0.5], [0], [-1]), "every `target` to be at least 0 but got -1"),
        (lambda: clopper_pearson(3, 2), "0 <= `successes` <= `total`.* but got 3 out of 2"),
        (lambda: clopper_pearson(1, 2, 0.0), r"`confidence` to be in \(0, 1\) but got 0.0"),
    ],
    "losses": [
        (lambda: Objective([]), "at least one loss in the objective but got none"),
        (lambda: Isotropy(weight=-1), "`weight` to be at least 0 but got -1"),
        (lambda: Isotropy(start_step=-1), "`start_step` to be at least 0 but got -1"),
        (lambda: CodingRateReduction(epsilon_squared=0), "`epsilon_squared` to be positive and finite but got 0"),
        (lambda: CodingRateReduction(warmup_steps=-1), "`warmup_steps` to be at least 0 but got -1"),
        (lambda: coding_rate(with_value(Z, NAN)), "finite latents in the coding rate but got NaN"),
        (lambda: ClassMMD(bandwidth=0), "`bandwidth` to be positive and finite but got 0"),
        (lambda: ClassMMD(reference="best"), "`reference` to be one of .* but got 'best'"),
        (lambda: ScoreCrossEntropy(gaussians="best"), "`gaussians` to be one of .* but got 'best'"),
        (lambda: ScoreCrossEntropy()(Z, Y, None, 0), "a `mixture` for ScoreCrossEntropy but got None"),
        (lambda: CertifiedRadius(1.0, method="theorem"), "`method` to be one of .* but got 'theorem'"),
        (lambda: Isotropy()(Z, Y[:3], None, 0), "40|shape"),
        (lambda: Isotropy()(Z[:0], Y[:0], None, 0), "at least one sample in the batch but got none"),
    ],
    "data": [
        (lambda: digits(batch_size=0), "`batch_size` to be at least 1 but got 0"),
        (lambda: digits(eval_batch_size=0), "`eval_batch_size` to be at least 1 but got 0"),
        (lambda: digits(num_workers=-1), "`num_workers` to be at least 0 but got -1"),
        (lambda: digits(shard_rows=0), "`shard_rows` to be at least 1 but got 0"),
        (lambda: digits(cache_dtype="int8"), "`cache_dtype` to be one of .* but got 'int8'"),
        (lambda: digits(images_per_class=0), "`images_per_class` to be at least 1 but got 0"),
        (lambda: digits().source("all"), "`split` to be one of .* but got 'all'"),
        (lambda: digits().open_cache("test"), "`cache_dir` to be given to the datamodule but it is None"),
        (lambda: digits().setup("training"), "a Lightning stage but got 'training'"),
        (lambda: GaussianNoise(sigma=0), "`sigma` to be positive and finite but got 0"),
        (lambda: folder(val_fraction=1.5), r"`val_fraction` to be in \[0, 1\] but got 1.5"),
        (lambda: folder(on_bad_image="hide"), "`on_bad_image` to be one of .* but got 'hide'"),
        (lambda: folder().source("train"), "nowhere"),
        (lambda: CIFAR10DataModule(ENCODER, root="nowhere", download=False).source("test"), "nowhere"),
        (lambda: CIFAR10DataModule(ENCODER, val_fraction=-1), r"`val_fraction` to be in \[0, 1\] but got -1"),
        (lambda: GaussianMixtureDataModule(components=1), "`components` to be at least 2 but got 1"),
        (lambda: GaussianMixtureDataModule(distance=-1), "`distance` to be at least 0 but got -1"),
        (lambda: GaussianMixtureDataModule(test_size=0), "`test_size` to be at least 1 but got 0"),
        (lambda: SelectionDataModule(digits(), "test", 0), "`skip` to be at least 1 but got 0"),
        (lambda: SelectionDataModule(digits(), "all"), "`split` to be one of .* but got 'all'"),
        (lambda: Reading(mode="CMYK"), "`mode` to be one of .* but got 'CMYK'"),
        (lambda: Reading(resize=8, crop=9), r"`crop` to be at most `resize` \(8\) but got 9"),
        (lambda: plan(rows=0), "`rows` to be at least 1 but got 0"),
        (lambda: plan(dtype="int8"), "`cache_dtype` to be one of .* but got 'int8'"),
    ],
    "training": [
        (lambda: Optimization(optimizer="best"), "`optimizer` to be one of .* but got 'best'"),
        (lambda: Optimization(schedule="best"), "`schedule` to be one of .* but got 'best'"),
        (lambda: Optimization(learning_rate=-1.0), "`learning_rate` to be at least 0 but got -1.0"),
        (lambda: gen_ellips(covariance_estimator="best"), "`covariance_estimator` to be one of .* but got 'best'"),
        (lambda: gen_ellips(shrinkage=2.0), "`shrinkage` to be in .* but got 2.0"),
        (lambda: CertificationCallback(methods=["best"]), "`methods` to be one of .* but got 'best'"),
        (lambda: CertificationCallback([0.5, 0.1]), "`radii`"),
        (lambda: CertificationCallback(confidence=0), r"`confidence` to be in \(0, 1\) but got 0"),
        (lambda: CertificationCallback(max_radius=0), "`max_radius` to be positive and finite but got 0"),
        (lambda: GaussianityCallback(estimator="best"), "`estimator` to be one of .* but got 'best'"),
        (lambda: GaussianityCallback(num_samples=0), "`num_samples` to be at least 1 but got 0"),
        (lambda: SafeRequeue("SIGNOTHING"), "`requeue_signal` to name a signal but got 'SIGNOTHING'"),
    ],
    "theory": [
        (lambda: Localizer(Ellips(2, 3)), "a fitted mixture but this one was not"),
        (lambda: Localizer(FITTED, num_radii=1), "`num_radii` to be at least 2 but got 1"),
        (lambda: Localizer(FITTED).best(-1.0), "`epsilon` to be at least 0 but got -1.0"),
        (lambda: mardia(Z, Y, 2, calibration="best"), "`calibration` to be one of .* but got 'best'"),
        (lambda: mardia(Z, Y + 1, 2), r"`labels` to lie in \[0, 2\)"),
        (lambda: total_variation_bound(NAN), "`kl` to be a number but got NaN"),
    ],
}
CASES = [pytest.param(*row, id=f"{about}-{number}") for about, rows in ROWS.items() for number, row in enumerate(rows)]
REFUSALS = (ValueError, TypeError, FileNotFoundError, NotFittedError, WeightsNotFoundError)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # torchmetrics' word on it, before ours
@pytest.mark.parametrize(("given", "message"), CASES)
def test_it_is_refused_with_what_was_expected_and_what_came(
    given: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing is
    with pytest.raises(REFUSALS, match=message) as refused:
        given()
    said = str(refused.value)
    assert "xpected" in said, f"what was expected is not said: {said}"
    assert len(said) < 600, f"one message, not a page: {said}"
    assert not list(tmp_path.rglob("*")), "something was written before it was refused"


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 150


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "expected the header"),
        (["idx\tlabel"], "expected the header"),
        (["HEADER", "0\t1"], "line 2: expected 6 columns but got 2"),
        (["HEADER", "0\t1\t1\t0.5\t7\t0:00:01"], "line 2: expected `correct` to be 0 or 1 but got '7'"),
        (["HEADER", "0\t1\t1\t0.5\t0\t0:00:01"], "line 2: expected `correct` to say whether 1 equals 1 but got 0"),
        (["HEADER", "0\t1\t1\tfar\t1\t0:00:01"], "line 2"),
        (["HEADER", "0\t1\t1\tnan\t1\t0:00:01"], "line 2: Expected `radius` of image 0 to be at least 0 but got nan"),
        (["HEADER", "0\t1\t1\t0.5\t1\tsoon"], "line 2: expected `time`"),
        (["HEADER", *2 * ["0\t1\t1\t0.5\t1\t1.0"]], "every index once but got these more often"),
    ],
)
def test_a_table_of_another_tool_is_refused_by_file_and_line(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.tsv"
    header = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    path.write_text("\n".join(lines).replace("HEADER", header) + "\n")
    with pytest.raises(ValueError, match=message) as refused:
        read_tsv(path)
    assert str(path) in str(refused.value)


def test_certificates_hold_what_they_are_given() -> None:
    """The rows above change one thing of a certificate that is fine as it is."""
    assert isinstance(replace(CERTIFICATE), Certificate)
    assert bool(check(FITTED, Z, CERTIFICATE).all())

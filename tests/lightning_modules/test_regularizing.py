"""GenEllips with noisy copies: regularisation chosen by their votes, and batches that hold them together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from ellips import Ellips, EllipsHead
from ellips.gaussians import class_covariances
from ellips.losses import CodingRateReduction, VoteCrossEntropy, VoteRadius
from ellips.regularization_search import RegularizationSearch
from ellips.types import FeatureBatch
from ellips.vote_search import noise_covariance, select_by_votes
from lightning_modules import GenEllips
from tests.lightning_modules.feature_data import FeatureData, Rows, stack
from tests.lightning_modules.test_gen_ellips import make_module, make_trainer

COPIES = 20
SEARCH = RegularizationSearch(0.2, pooling=(0.0, 0.5), shrinkage=(0.0, 0.2, 0.6), sigma=0.5)


class NoisyRows(Rows):
    """Every row of `Rows` several times, with noise."""

    def __init__(self, rows: Rows, copies: int) -> None:
        noise = torch.randn(len(rows), copies, rows.feature.shape[1], generator=torch.Generator().manual_seed(1))
        self.feature = (rows.feature[:, None] + 0.8 * noise).flatten(0, 1)
        self.label = rows.label.repeat_interleave(copies)
        self.copies = copies

    def __getitem__(self, index: int) -> FeatureBatch:
        return FeatureBatch(self.feature[index], self.label[index], torch.tensor(index // self.copies))


class NoisyData(FeatureData):
    """`FeatureData` whose training rows are four noisy copies, with the votes of validation rows beside them."""

    noise_sigma = 0.5
    vote_copies = COPIES

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.train: Rows = NoisyRows(self.train, 4)
        self.votes = NoisyRows(self.val, COPIES)

    def votes_dataloader(self) -> DataLoader[FeatureBatch]:
        return DataLoader(self.votes, batch_size=3 * COPIES, collate_fn=stack)


def votes_of(module: GenEllips, data: NoisyData) -> torch.Tensor:
    with torch.no_grad():
        return module.head.eval().latents(data.votes.feature).view(-1, COPIES, 5)


def test_votes_choose_are_logged_and_can_be_monitored(tmp_path: Path) -> None:
    data, module = NoisyData(), make_module(regularization=SEARCH, shrinkage=0.99)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/votes/certified_accuracy@0.2", mode="max")
    trainer = make_trainer(tmp_path, callbacks=[checkpoint], num_sanity_val_steps=0)
    trainer.fit(module, data)
    moments = module.head.moments.compute()
    assert int(moments.count.sum()) == 4 * 240
    best, candidates = select_by_votes(moments, votes_of(module, data), data.val.label, SEARCH)
    assert len({candidate.mean_radius for candidate in candidates}) == 6
    assert module.head.ellips.regularization == best.regularization
    expected = Ellips(4, 5, shrinkage=best.regularization.shrinkage, pooling=best.regularization.pooling)
    torch.testing.assert_close(module.head.ellips.covariances, expected.fit_moments(*moments).covariances)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/votes/")}
    assert logged == {
        "val/votes/accuracy": pytest.approx(best.accuracy),
        "val/votes/certified_accuracy@0.2": pytest.approx(best.certified_accuracy),
        "val/votes/mean_radius": pytest.approx(best.mean_radius),
    }
    assert checkpoint.best_model_score is not None
    clean = (module.head(data.val.feature).argmax(1) == data.val.label).double().mean()
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(float(clean))


def test_the_noise_that_votes_choose_is_in_the_gaussians(tmp_path: Path) -> None:
    search = replace(SEARCH, noise=(0.5, 3.0))
    data, module = NoisyData(), make_module(regularization=search, shrinkage=0.99)
    trainer = make_trainer(tmp_path, num_sanity_val_steps=0)
    trainer.fit(module, data)
    moments, images = module.head.moments.compute(), votes_of(module, data)
    best, _ = select_by_votes(moments, images, data.val.label, search)
    assert best.noise in (0.5, 3.0)
    assert float(trainer.callback_metrics["val/noise"]) == best.noise
    expected = class_covariances(moments, "full", best.regularization, best.noise * noise_covariance(images))
    torch.testing.assert_close(module.head.ellips.covariances, expected)
    loaded = EllipsHead.from_checkpoint(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    assert torch.equal(loaded.ellips.covariances, module.head.ellips.covariances)
    with pytest.raises(ValueError, match="full or diagonal covariances for `noise`"):
        make_module(regularization=search, covariance_type="low_rank", rank=2)


def test_data_without_votes_or_with_another_noise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"FeatureData has none; set augment .*val_copies"):
        make_trainer(tmp_path).fit(make_module(regularization=SEARCH), FeatureData())
    other = replace(SEARCH, sigma=0.25)
    with pytest.raises(ValueError, match=r"noise, 0\.5, but got 0\.25; set model\.regularization\.sigma"):
        make_trainer(tmp_path).fit(make_module(regularization=other), NoisyData())


def test_losses_on_votes_train_on_whole_groups_and_refuse_others(tmp_path: Path) -> None:
    objective = [CodingRateReduction(), VoteCrossEntropy(4), VoteRadius(2.0, 4)]
    data, module = NoisyData(batch_size=96), make_module(objective=objective)
    trainer = make_trainer(tmp_path, enable_checkpointing=False)
    trainer.fit(module, data)
    assert trainer.global_step == 20
    assert float(trainer.callback_metrics["train/VoteCrossEntropy"]) > 0
    with pytest.raises(ValueError, match=r"every 4 rows .*batch_by_image"):
        make_trainer(tmp_path).fit(make_module(objective=objective), NoisyData(batch_size=96, shuffle=True))

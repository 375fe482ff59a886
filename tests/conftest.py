import gc
from pathlib import Path

import hypothesis
import pytest
import torch

from datamodules import DigitsDataModule
from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead

# A test that takes long is no test that fails: machines differ, and so does what else they do.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Let no search for garbage look through a million objects that were imported, each time that there is one."""
    gc.freeze()


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training leaves it: Gaussians on the features of the shipped digits encoder."""
    encoder = FrozenEncoder("test_resnet", weights="digits")
    data = DigitsDataModule(encoder, batch_size=2000)
    data.setup("fit")
    batch = data.encode(next(iter(data.fit_dataloader())))
    head = EllipsHead(96, 10, latent_dim=None, shrinkage=0.3).fit(batch.feature, batch.label)
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    torch.save({"state_dict": state, "head": head.config, "encoder_fingerprint": encoder.fingerprint()}, path)
    return path

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ellips.encoders import FrozenEncoder

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is in the dev extra")
ARCHITECTURE = "vit_base_patch32_clip_quickgelu_224"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[torch.nn.Module, Path]]:
    """A randomly initialised model as the package builds it, and the state dict it writes."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).eval()
    folder = tmp_path_factory.mktemp("open_clip")
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    yield model, folder / "open_clip_pytorch_model.bin"
    (folder / "open_clip_pytorch_model.bin").unlink()  # 600 MB


def test_image_features_are_those_of_open_clip(reference: tuple[torch.nn.Module, Path]) -> None:
    model, path = reference
    encoder = FrozenEncoder(ARCHITECTURE, weights=path)
    assert encoder.feature_dim == 512
    images = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        expected = model.encode_image((images - mean) / std)
        measured = encoder(images)
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-4)

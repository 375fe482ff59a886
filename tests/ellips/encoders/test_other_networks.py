"""Networks that compute otherwise with the same weights have other fingerprints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from ellips.encoders import Denoised, DiffusionDenoiser, FrozenEncoder
from ellips.encoders.weights import state_digest
from ellips.errors import EncoderMismatchError
from ellips.pipeline import check_fingerprint
from tests.ellips.encoders.test_diffusion import write_model


@pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed (extra `diffusion`)"
)
@pytest.mark.parametrize("setting", [{"norm_num_groups": 2}, {"act_fn": "relu"}])
def test_settings_of_a_diffusion_model_that_its_weights_do_not_tell(setting: dict[str, object], tmp_path: Path) -> None:
    one, other = (
        DiffusionDenoiser(write_model(tmp_path / f"model-{i}", **more)) for i, more in enumerate(({}, setting))
    )
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert state_digest(one) == state_digest(other)
    assert not torch.allclose(one(images), other(images), atol=1e-4)
    encoder = FrozenEncoder("test_resnet", weights="random", in_channels=3)
    found = [Denoised(encoder, denoiser).fingerprint() for denoiser in (one, other)]
    with pytest.raises(EncoderMismatchError, match=r"denoiser: .*config=sha256:"):
        check_fingerprint(*found)
    check_fingerprint(found[0], Denoised(encoder, DiffusionDenoiser(tmp_path / "model-0")).fingerprint())

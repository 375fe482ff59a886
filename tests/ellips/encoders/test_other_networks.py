"""Networks that compute otherwise with the same weights have other fingerprints."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ellips.encoders import Denoised, DiffusionDenoiser, FrozenEncoder
from ellips.encoders.lipschitz import LipschitzEncoder, export_encoder
from ellips.encoders.liresnet import LiResNetArchitecture
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


def test_strides_and_paddings_of_a_stem_that_its_weights_do_not_tell(tmp_path: Path) -> None:
    tiny = LiResNetArchitecture((1, 16, 16), width=2, depth=1, stem=(5, 4, 1), linear_depth=1, feature_dim=2)
    other = replace(tiny, stem=(5, 4, 2))
    export_encoder(tiny.build(), tiny, tmp_path / "one.safetensors")
    one = LipschitzEncoder(tmp_path / "one.safetensors")
    network = other.build()
    network.load_state_dict(one.layers.state_dict())
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(one(images), network(images), atol=1e-4)
    assert one.ARCHITECTURE.endswith("LipschitzEncoder(stem=(5, 4, 1))")
    assert other.untold == "stem=(5, 4, 2)"
    assert (
        LiResNetArchitecture().untold
        == LiResNetArchitecture.from_record(LiResNetArchitecture().to_record()).untold
        == ""
    )

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from ellips.encoders import FrozenEncoder, LinearHead
from ellips.encoders.preprocessing import Preprocess
from ellips.encoders.weights import SHIPPED_FOLDER, file_digest, shipped_names, shipped_provenance, state_digest
from ellips.errors import WeightsNotFoundError


def small_encoder(**arguments: object) -> FrozenEncoder:
    return FrozenEncoder("test_resnet", **{"weights": "random", "input_size": 32, **arguments})


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 6 * 6, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(images.flatten(1)))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 3, 32, 32), (1, 3, 50, 21)])
def test_any_resolution_and_grey_or_rgb(shape: tuple[int, ...]) -> None:
    encoder = small_encoder()
    assert encoder(torch.rand(shape)).shape == (shape[0], encoder.feature_dim)


def test_matches_preprocessing_done_by_hand() -> None:
    encoder = small_encoder()
    images = torch.rand(4, 3, 20, 20)
    resized = functional.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    expected = encoder.backbone((resized - 0.5) / 0.5)
    torch.testing.assert_close(encoder(images), expected)


def test_grey_is_the_same_as_repeated_grey() -> None:
    encoder = small_encoder()
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(encoder(grey), encoder(grey.expand(-1, 3, -1, -1)))


def test_settings_come_from_the_models_own_configuration() -> None:
    encoder = FrozenEncoder("resnet10t", weights="random")
    config = timm.get_pretrained_cfg("resnet10t")
    assert encoder.preprocess.size == config.input_size[1:]
    assert encoder.preprocess.interpolation == config.interpolation
    torch.testing.assert_close(encoder.preprocess.mean.flatten(), torch.tensor(config.mean))
    torch.testing.assert_close(encoder.preprocess.std.flatten(), torch.tensor(config.std))


def test_vision_transformer_takes_the_size_that_is_asked_for() -> None:
    encoder = FrozenEncoder("test_vit", weights="random", input_size=32)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, encoder.feature_dim)


def test_stays_frozen_whatever_the_trainer_does() -> None:
    encoder = small_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    digest = state_digest(encoder.backbone)
    encoder.train()
    nn.Sequential(encoder, nn.Linear(encoder.feature_dim, 2)).train()
    assert not any(module.training for module in encoder.modules())
    encoder.backbone.train()  # reaching past the encoder
    encoder(torch.rand(8, 3, 32, 32)).sum()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    for name, value in encoder.state_dict().items():  # buffers among them
        assert torch.equal(value, before[name]), name
    assert state_digest(encoder.backbone) == digest


def test_gradients_reach_the_images_and_functional_transforms_work() -> None:
    encoder = small_encoder().double()
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    encoder(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert float(images.grad.norm()) > 0
    jacobian = torch.func.vmap(torch.func.jacrev(lambda image: encoder(image[None])[0]))(images.detach())
    torch.testing.assert_close(jacobian[:, 0], images.grad)
    tangent = torch.randn_like(images)
    _, derivative = torch.func.jvp(encoder, (images.detach(),), (tangent,))
    torch.testing.assert_close(derivative[:, 0], (images.grad * tangent).flatten(1).sum(1))


def test_encode_gives_the_same_features_as_ordinary_tensors() -> None:
    encoder = small_encoder()
    images = torch.rand(4, 1, 8, 8)
    features = encoder.encode(images)
    torch.testing.assert_close(features, encoder(images))
    assert not features.is_inference()
    nn.Linear(encoder.feature_dim, 2)(features).sum().backward()


def test_half_precision_features_come_out_as_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small_encoder()(torch.rand(2, 3, 32, 32)).dtype == torch.float32


def test_any_module_is_taken_as_it_is() -> None:
    module = Flat().train()
    encoder = FrozenEncoder(module, input_size=6)
    images = torch.rand(3, 3, 6, 6)
    torch.testing.assert_close(encoder(images), module.eval()(images))
    assert encoder.feature_dim == 5


def test_a_module_that_does_not_give_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features of shape \(N, D\) but got \(1, 4, 30, 30\)"):
        FrozenEncoder(nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize("kind", ["pth", "pth_with_state_dict_key", "safetensors"])
@pytest.mark.parametrize("classes", [0, 10])
def test_local_files(tmp_path: Path, kind: str, classes: int) -> None:
    model = timm.create_model("test_resnet", num_classes=classes)
    path = tmp_path / f"weights.{kind[:3] if kind.startswith('pth') else kind}"
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict() if kind == "pth" else {"state_dict": model.state_dict()}, path)
    encoder = FrozenEncoder("test_resnet", weights=path, input_size=32)
    images = torch.rand(2, 3, 32, 32)
    inputs = (images - 0.5) / 0.5
    expected = model.eval().forward_head(model.forward_features(inputs), pre_logits=True)
    torch.testing.assert_close(encoder(images), expected)
    assert FrozenEncoder("test_resnet", weights=tmp_path, input_size=32).fingerprint() == encoder.fingerprint()


def test_projection_keeps_the_last_layer(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = FrozenEncoder("test_resnet", weights=tmp_path / "w.pth", input_size=32, projection=True)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), model.eval()((images - 0.5) / 0.5))


def test_weights_of_another_architecture_are_refused_and_never_half_loaded(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="do not fit"):
        FrozenEncoder("test_vit", weights=tmp_path / "w.pth")
    state = timm.create_model("test_resnet").state_dict()
    state.pop("layer1.0.bn1.running_mean")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="running_mean"):
        FrozenEncoder("test_resnet", weights=tmp_path / "w.pth")


def test_missing_and_unreadable_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected `weights`.*'random'"):
        FrozenEncoder("test_resnet")
    with pytest.raises(WeightsNotFoundError, match=r"existing file but got '.*nowhere\.pth'"):
        FrozenEncoder("test_resnet", weights=tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("not a state dict")
    with pytest.raises(ValueError, match="to be a state dict"):
        FrozenEncoder("test_resnet", weights=tmp_path / "text.pth")
    with pytest.raises(ValueError, match="timm model name but got 'test_resnot'"):
        FrozenEncoder("test_resnot", weights="random")


@pytest.mark.parametrize(
    ("model", "weights", "repository", "name"),
    [
        ("resnet10t.c3_in1k", "hub", "timm/resnet10t.c3_in1k", "resnet10t.c3_in1k.safetensors"),
        ("vit_large_patch14_clip_quickgelu_224", "hub:chs20/fare4-clip", "chs20/fare4-clip", "chs20--fare4-clip."),
    ],
)
def test_unreachable_hub_says_what_to_fetch_and_how_to_name_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, weights: str, repository: str, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("ELLIPS_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(WeightsNotFoundError) as error:
        FrozenEncoder(model, weights=weights)
    assert repository in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_a_file_named_as_the_error_says_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ELLIPS_WEIGHTS", str(tmp_path))
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), tmp_path / "test_resnet.r160_in1k.safetensors")
    encoder = FrozenEncoder("test_resnet", weights="hub", input_size=32)
    model.reset_classifier(0)
    assert encoder.fingerprint()["weights"] == f"sha256:{state_digest(model)}"


def test_fingerprint_tells_apart_what_changes_features() -> None:
    encoder = small_encoder()
    assert small_encoder().fingerprint() == encoder.fingerprint()
    assert small_encoder(seed=1).fingerprint() != encoder.fingerprint()
    assert small_encoder(input_size=40).fingerprint() != encoder.fingerprint()
    assert small_encoder(std=(0.5, 0.5, 0.4)).fingerprint() != encoder.fingerprint()
    with torch.no_grad():
        next(encoder.backbone.buffers()).add_(1)
    assert small_encoder().fingerprint() != encoder.fingerprint()


def test_random_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    small_encoder()
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "divide 8-bit images by 255"),
        (torch.rand(3, 8, 8), ValueError, r"shape \(N, C, H, W\)"),
        (torch.rand(1, 2, 8, 8), ValueError, r"C in \[1, 3\]"),
    ],
)
def test_wrong_images_are_refused(images: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small_encoder()(images)


@pytest.mark.parametrize(
    "arguments",
    [{"in_channels": 2}, {"size": (0, 3)}, {"mean": [0.5]}, {"std": [0.0, 1.0, 1.0]}, {"interpolation": "cubic"}],
)
def test_wrong_preprocessing_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Preprocess(**arguments)


def test_shipped_encoder_has_the_recorded_digest_and_architecture() -> None:
    assert "digits" in shipped_names()
    record = shipped_provenance("digits")
    encoder = FrozenEncoder(record["architecture"], weights="digits")
    assert encoder.preprocess.size == tuple(record["preprocessing"]["size"])
    with pytest.raises(ValueError, match="'test_resnet'"):
        FrozenEncoder("test_vit", weights="digits")


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_name_is_an_encoder_with_its_architecture(name: str) -> None:
    encoder, record = FrozenEncoder(name), shipped_provenance(name)
    channels = encoder.preprocess.in_channels
    assert encoder(torch.rand(2, channels, *encoder.preprocess.size)).shape == (2, encoder.feature_dim)
    assert encoder.feature_dim == record.get("feature_dim", encoder.feature_dim)
    assert file_digest(SHIPPED_FOLDER / f"{name}.safetensors") == record["sha256"]
    if "(" not in record["architecture"]:
        return
    assert encoder.architecture == record["architecture"]
    assert encoder.preprocess.describe() == record["preprocessing"]
    assert encoder.fingerprint() == FrozenEncoder(encoder.backbone).fingerprint()


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("cifar10_noise", 128),
        ("cifar10_clean", 128),
        ("cifar10_adversarial", 128),
        ("cifar10_lipschitz", 64),
        ("cifar10_lipnext", 64),
    ],
)
def test_a_shipped_encoder_brings_the_classifier_it_was_trained_with(name: str, features: int) -> None:
    record, head = shipped_provenance(name), LinearHead(name)
    assert file_digest(SHIPPED_FOLDER / record["head"]["file"]) == record["head"]["sha256"]
    assert (head.in_features, head.num_classes) == (features, 10)
    assert record.get("feature_dim", features) == features
    with pytest.raises(WeightsNotFoundError, match="cifar10_noise"):
        LinearHead("digits")


def test_shipped_weights_that_were_changed_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ellips.encoders import weights

    for file in ("digits.json", "digits.safetensors"):
        (tmp_path / file).write_bytes((weights.SHIPPED_FOLDER / file).read_bytes())
    with (tmp_path / "digits.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    monkeypatch.setattr(weights, "SHIPPED_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="SHA-256"):
        FrozenEncoder("test_resnet", weights="digits")


@pytest.fixture
def open_clip_state(tmp_path: Path) -> Path:
    """The names by which OpenCLIP weights are known, without the weights."""
    torch.save({"visual.class_embedding": torch.zeros(4), "visual.proj": torch.zeros(4, 2)}, tmp_path / "clip.bin")
    return tmp_path / "clip.bin"


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("quick", [True, False])
def test_open_clip_weights_with_the_other_gelu_are_refused(open_clip_state: Path, quick: bool, nested: bool) -> None:
    model = {"quick_gelu": quick}
    (open_clip_state.parent / "open_clip_config.json").write_text(json.dumps({"model_cfg": model} if nested else model))
    name = "vit_base_patch32_clip_224" if quick else "vit_base_patch32_clip_quickgelu_224"
    with pytest.raises(ValueError, match=f"Expected an architecture {'with' if quick else 'without'} 'quickgelu'"):
        FrozenEncoder(name, weights=open_clip_state)


def test_open_clip_weights_that_do_not_state_their_gelu_are_warned_of(open_clip_state: Path) -> None:
    with (
        pytest.warns(UserWarning, match="does not say whether its network uses QuickGELU"),
        pytest.raises(ValueError, match="do not fit"),
    ):
        FrozenEncoder("vit_base_patch32_clip_224", weights=open_clip_state)


def test_open_clip_files_of_a_hub_repository_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    class Missing(EntryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "no such file")

    model, asked = timm.create_model("test_resnet"), []

    def load(repository: str, filename: str, *, weights_only: bool) -> dict[str, torch.Tensor]:
        assert weights_only, "a pickle from the hub could run code"
        asked.append((repository, filename))
        if filename != "open_clip_pytorch_model.bin":
            raise Missing
        return model.state_dict()

    def no_config(*_: object) -> str:
        raise Missing

    monkeypatch.setenv("ELLIPS_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("ellips.encoders.weights.load_state_dict_from_hf", load)
    monkeypatch.setattr("ellips.encoders.weights.hf_hub_download", no_config)
    encoder = FrozenEncoder("test_resnet", weights="hub:someone/model", input_size=32)
    model.reset_classifier(0)
    assert encoder.fingerprint()["weights"] == f"sha256:{state_digest(model)}"
    assert asked == [("someone/model", "pytorch_model.bin"), ("someone/model", "open_clip_pytorch_model.bin")]


def test_a_file_is_loaded_into_a_module(tmp_path: Path) -> None:
    saved = Flat()
    torch.save(saved.state_dict(), tmp_path / "flat.pth")
    encoder = FrozenEncoder(Flat(), weights=tmp_path / "flat.pth", input_size=6)
    assert encoder.fingerprint()["weights"] == f"sha256:{state_digest(saved)}"

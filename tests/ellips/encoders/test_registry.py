"""Encoders of others by name: the registry is well-formed, and files in the real formats are held against it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import dill
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.hub import HASH_REGEX

from ellips.encoders import FrozenEncoder, recorded_encoder, registered_encoders
from ellips.encoders import registry as registry_module
from ellips.encoders.weights import file_digest, registered_file, shipped_names, state_digest
from ellips.errors import WeightsNotFoundError
from ellips.planning.encoder import outline

NAMES = list(registered_encoders())
WIDTHS = {
    "resnet18": 512,
    "resnet50": 2048,
    "deit_base_patch16_224": 768,
    "vit_base_patch16_clip_224.laion2b": 512,
    "vit_large_patch14_clip_quickgelu_224": 768,
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_an_encoder_is_complete(name: str) -> None:
    entry = registered_encoders()[name]
    assert entry.name == name
    assert all(text.strip() for text in (entry.licence, entry.licence_source, entry.paper))
    assert re.match(
        r"clean$|Gaussian noise, sigma \d|adversarial( without labels)?, l(2|-infinity), epsilon \d", entry.training
    )
    assert entry.claims
    assert set(entry.claims) <= {"deterministic", "probabilistic", "estimated"}
    assert (entry.sha256 is None) == (entry.sha256_source is None)
    assert Path(entry.file).name == entry.file
    assert set(entry.preprocessing) == {"in_channels", "size", "mean", "std", "interpolation"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_other_encoders(name: str) -> None:
    assert re.fullmatch(r"\w+", name)
    assert not timm.is_model(name)
    assert name not in (*shipped_names(), "hub", "random")


@pytest.mark.parametrize("name", NAMES)
def test_a_place_is_well_formed_and_so_is_the_digest_that_is_stated_there(name: str) -> None:
    entry = registered_encoders()[name]
    digest = entry.sha256 or ""
    if entry.url is not None:
        parts = urlparse(entry.url)
        assert (parts.scheme, Path(parts.path).name) == ("https", entry.file)
        in_name = HASH_REGEX.search(entry.file)
        assert in_name is not None
        assert in_name.group(1) == digest
    if entry.repository is not None:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repository)
        assert re.fullmatch(r"[0-9a-f]{40}", entry.revision or "")
        assert len(digest) in (0, 64)
        if entry.sha256_source is not None:
            pages = f"https://huggingface.co/{entry.repository}/"
            page = entry.sha256_source.removeprefix(pages)
            assert re.fullmatch(rf"commit/{entry.revision}|blob/(main|{entry.revision})/{re.escape(entry.file)}", page)


def test_what_torchvision_and_timm_say_themselves() -> None:
    entries = registered_encoders()
    weights = torchvision.models.get_weight("ResNet50_Weights.IMAGENET1K_V2")
    assert entries["imagenet_resnet50_v2"].url == weights.url
    models = {"imagenet_resnet18": "resnet18.tv_in1k", "imagenet_resnet50": "resnet50.tv_in1k"}
    models |= {"imagenet_resnet50_v2": "resnet50.tv2_in1k", "imagenet_deit_b16": "deit_base_patch16_224.fb_in1k"}
    assert set(models) == {name for name, entry in entries.items() if entry.training == "clean"}
    for name, model in models.items():
        entry, config = entries[name], timm.get_pretrained_cfg(model)
        assert entry.architecture == config.architecture
        assert config.url == entry.url or config.hf_hub_id == entry.repository
        assert config.license in (entry.licence.lower(), None)  # older versions of timm do not say it of all
        assert entry.preprocessing["interpolation"] == config.interpolation
        assert (tuple(entry.preprocessing["mean"]), tuple(entry.preprocessing["std"])) == (config.mean, config.std)


@pytest.mark.parametrize("architecture", sorted({entry.architecture for entry in registered_encoders().values()}))
def test_every_network_is_one_that_can_be_built(architecture: str) -> None:
    entry = next(entry for entry in registered_encoders().values() if entry.architecture == architecture)
    encoder = outline({"model": entry.name})  # no weights, nothing is fetched
    assert encoder.feature_dim == WIDTHS[architecture]
    assert encoder.preprocess.size == (224, 224)
    assert encoder.preprocess.interpolation == entry.preprocessing["interpolation"]
    by_weights = outline({"model": architecture.partition(".")[0], "weights": entry.name})
    assert by_weights.feature_dim == encoder.feature_dim


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_networks_have_timms_names(name: str) -> None:
    with torch.device("meta"):
        theirs, timms = torchvision.models.get_model(name).state_dict(), timm.create_model(name).state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {key: value.shape for key, value in timms.items()}


def optimizer_state(model: nn.Module) -> dict[str, object]:
    """That of SGD after a step, as checkpoints of trainings have it beside the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 50)
    return {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}


def robustness(model: nn.Module, path: Path) -> None:
    """As MadryLab's `robustness` writes it: DataParallel of the network, its twin in the attacker, and normalisers."""
    training, norm = optimizer_state(model), {"new_mean": torch.zeros(3, 1, 1), "new_std": torch.ones(3, 1, 1)}
    state: dict[str, Tensor] = {f"module.normalizer.{key}": value for key, value in norm.items()}
    state |= {f"module.model.{key}": value for key, value in model.state_dict().items()}
    state |= {f"module.attacker.normalize.{key}": value for key, value in norm.items()}
    state |= {f"module.attacker.model.{key}": value for key, value in model.state_dict().items()}
    content = {"model": state, **training, "epoch": 150, "amp": "N/A"}
    torch.save(content, path, pickle_module=dill, _use_new_zipfile_serialization=False)


def smoothing(model: nn.Module, path: Path) -> None:
    """As Cohen et al.'s program writes it: normalisation, which has no tensors, and DataParallel of the network."""
    training = {"optimizer": optimizer_state(model)["optimizer"]}
    state = {f"1.module.{key}": value for key, value in model.state_dict().items()}
    content = {"epoch": 90, "arch": "resnet50", "state_dict": state, **training}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def tensors(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


FORMATS: Mapping[str, tuple[Callable[[nn.Module, Path], None], dict[str, str]]] = {
    "robustness": (robustness, {"repository": "someone/robust", "file": "l2_eps0.5.ckpt", "prefix": "model."}),
    "smoothing": (smoothing, {"by_hand": "their drive", "file": "checkpoint.pth.tar", "prefix": "1.module."}),
    "plain": (plain, {"url": "https://example.org/small-01234567.pth", "file": "small-01234567.pth"}),
    "tensors": (tensors, {"repository": "someone/small", "file": "model.safetensors", "revision": "0" * 40}),
}


class Registry:
    """A registry of one small encoder, `small`, and the folder where weights are looked for."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.file = folder / "registry.toml"
        self.weights = folder / "weights"
        self.model = timm.create_model("test_resnet", num_classes=10).eval()

    def write(self, **fields: str) -> None:
        entry = {"architecture": "test_resnet", "licence": "MIT", "licence_source": "its page", "training": "clean"}
        entry |= {"paper": "someone 2020", "preprocessing": "small", **fields}
        lines = ["[preprocessing.small]", "in_channels = 3", "size = 32", "mean = [0.4, 0.5, 0.6]"]
        lines += ["std = [0.2, 0.3, 0.4]", 'interpolation = "bicubic"', "[encoders.small]", 'claims = ["estimated"]']
        lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        self.file.write_text("\n".join(lines))
        registry_module._read.cache_clear()

    @property
    def path(self) -> Path:
        return registered_file(registered_encoders()["small"])

    def save(self, kind: str, digits: int | None = 64) -> None:
        """Put the encoder's file where it belongs, and its digest, or the first digits of it, into the registry."""
        write, fields = FORMATS[kind]
        self.write(**fields)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write(self.model, self.path)
        if digits is not None:
            self.write(**fields, sha256=file_digest(self.path)[:digits], sha256_source="its page")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    monkeypatch.setattr("ellips.encoders.registry.REGISTRY_FILE", made.file)
    monkeypatch.setenv("ELLIPS_WEIGHTS", str(made.weights))
    made.write(**FORMATS["plain"][1])
    return made


@pytest.mark.parametrize("digits", [64, 8, None])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_in_the_weights_folder_is_loaded_by_name(registry: Registry, kind: str, digits: int | None) -> None:
    registry.save(kind, digits)
    encoder = FrozenEncoder("small")
    images = torch.rand(2, 3, 32, 32)
    normed = (images - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    expected = registry.model.forward_head(registry.model.forward_features(normed), pre_logits=True)
    torch.testing.assert_close(encoder(images), expected)
    assert encoder.preprocess.interpolation == "bicubic"
    assert FrozenEncoder("test_resnet", weights="small").fingerprint() == encoder.fingerprint()
    recorded = recorded_encoder(encoder)
    assert recorded is not None
    assert recorded["init_args"]["model"] == "small"


def test_it_is_loaded_into_a_module_of_ones_own(registry: Registry) -> None:
    registry.save("smoothing")
    module = timm.create_model("test_resnet", num_classes=10)
    encoder = FrozenEncoder(module, weights="small", input_size=32)
    assert encoder.fingerprint()["weights"] == f"sha256:{state_digest(registry.model)}"


@pytest.mark.parametrize("digits", [64, 8])
def test_another_file_is_refused_before_anything_of_it_is_read(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, digits: int
) -> None:
    registry.save("plain", digits)
    stated = file_digest(registry.path)
    with registry.path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    monkeypatch.setattr("ellips.encoders.weights.load_file", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ValueError, match="SHA-256") as error:
        FrozenEncoder("small")
    expected = f"{'be' if digits == 64 else 'begin with'} {stated[:digits]}, as the registry has it"
    assert expected in str(error.value)
    assert f"got {file_digest(registry.path)}; delete the file, and fetch https://example.org" in str(error.value)


def test_a_file_from_the_hub_is_fetched_once_at_its_commit(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.save("tensors")
    content, asked = registry.path.read_bytes(), []
    registry.path.unlink()

    def fetch(repository: str, filename: str, *, revision: str, local_dir: Path) -> str:
        asked.append((repository, filename, revision))
        (Path(local_dir) / filename).write_bytes(content)
        return str(Path(local_dir) / filename)

    monkeypatch.setattr("ellips.encoders.weights.hf_hub_download", fetch)
    assert FrozenEncoder("small").fingerprint() == FrozenEncoder("small").fingerprint()
    assert asked == [("someone/small", "model.safetensors", "0" * 40)]


def test_what_an_address_gives_is_held_against_the_digest(registry: Registry, tmp_path: Path) -> None:
    published = tmp_path / "small-01234567.pth"
    plain(registry.model, published)
    fields = {"url": published.as_uri(), "file": published.name, "sha256_source": "its page"}
    registry.write(**fields, sha256=file_digest(published)[:8])
    encoder = FrozenEncoder("small")
    assert registry.path.read_bytes() == published.read_bytes()
    assert encoder.fingerprint() == FrozenEncoder("small").fingerprint()
    registry.path.unlink()
    with published.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=f"but got {file_digest(published)}"):
        FrozenEncoder("small")


@pytest.mark.parametrize("kind", ["robustness", "smoothing", "plain"])
def test_what_cannot_be_fetched_says_what_to_put_where(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("ellips.encoders.weights.download_url_to_file", unreachable)
    fields = FORMATS[kind][1]
    registry.write(**fields, sha256="0123456789abcdef" * 4, sha256_source="its page")
    with pytest.raises(WeightsNotFoundError) as error:
        FrozenEncoder("small")
    message = str(error.value)
    assert (fields.get("repository") or fields.get("url") or fields["by_hand"]) in message
    assert fields["file"] in message
    assert f"store it here as {registry.weights / 'small' / fields['file']}" in message
    assert "its SHA-256 has to be 0123456789abcdef" in message
    assert len(message.splitlines()) == 1


def test_names_are_not_mixed_up(registry: Registry) -> None:
    registry.save("plain")
    with pytest.raises(
        ValueError, match=r"'test_resnet', which the registry's weights 'small' are for.* got 'test_vit'"
    ):
        FrozenEncoder("test_vit", weights="small")
    with pytest.raises(ValueError, match="no `weights` with the encoder 'small'"):
        FrozenEncoder("small", weights="random")


def test_a_file_without_the_networks_tensors_is_refused(registry: Registry) -> None:
    registry.write(**FORMATS["smoothing"][1])
    registry.path.parent.mkdir(parents=True)
    plain(registry.model, registry.path)
    with pytest.raises(ValueError, match=r"begin with '1\.module\.', but it has none"):
        FrozenEncoder("small")


def test_a_networks_activation_is_known_where_its_architecture_is(registry: Registry) -> None:
    registry.write(architecture="test_vit", url="https://example.org/clip.bin", file="clip.bin")
    registry.path.parent.mkdir(parents=True)
    torch.save({"visual.class_embedding": torch.zeros(4), "visual.proj": torch.zeros(4, 2)}, registry.path)
    with pytest.raises(ValueError, match="do not fit"):  # and no warning, which would be an error here
        FrozenEncoder("small")


@pytest.mark.parametrize("digest", ["", "11ad3fa", "11AD3FA6", "sha256:11ad3fa6", "0" * 65])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits"):
        replace(registered_encoders()["imagenet_resnet50"], sha256=digest)


def test_an_encoder_has_one_place() -> None:
    entry = registered_encoders()["imagenet_resnet50"]
    for change in ({"url": "https://example.org/a.pth"}, {"repository": None}):
        with pytest.raises(ValueError, match="Expected one of `url`, `repository` and `by_hand`"):
            replace(entry, **change)


def test_the_documentation_lists_them_all() -> None:
    rows = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8").splitlines()
    for name, entry in registered_encoders().items():
        (row,) = [row for row in rows if row.startswith(f"| `{name}` |")]
        known = {0: "none", 8: "8 digits", 64: "whole"}[len(entry.sha256 or "")]
        cells = [entry.training, *entry.claims, known, entry.licence]
        assert [cell for cell in cells if cell not in row] == []

"""Which training `train-encoder` runs: the configuration names it, and without a name it is the first there was."""

from __future__ import annotations

from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from ellips import lightning_modules
from ellips.commands.train_encoder import train_encoder
from ellips.encoders import LipNeXtArchitecture
from tests.shipped import CONFIGS, arguments

HEAD = "ellips.lightning_modules."


def printed(capsys: pytest.CaptureFixture[str], *given: str) -> Any:  # noqa: ANN401
    with pytest.raises(SystemExit) as stop:
        train_encoder(["fit", *given, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)["model"]


def test_a_flat_configuration_is_that_of_the_lipschitz_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    flat = yaml.safe_load((CONFIGS / "encoders" / "digits_lipschitz.yaml").read_text())["model"]
    assert "class_path" not in flat
    model = printed(capsys, *arguments("encoders/digits_lipschitz"), "--model.architecture.widths=[32]")
    assert model["class_path"] == f"{HEAD}LipschitzEncoderTraining"
    assert model["init_args"]["architecture"]["init_args"]["widths"] == [32]
    assert model["init_args"]["margin"] == flat["margin"]


@pytest.mark.parametrize(
    ("name", "expected", "setting"),
    [
        ("digits_noise", "NoisyEncoderTraining", "sigma"),
        ("cifar10_noise", "NoisyEncoderTraining", "sigma"),
        ("cifar10_adversarial", "AdversarialEncoderTraining", "epsilon"),
        ("digits_denoiser", "DenoiserTraining", "sigma"),
        ("cifar10_denoiser_gpu", "DenoiserTraining", "sigma"),
        ("digits_lipnext", "LipschitzEncoderTraining", "margin"),
        ("cifar10_lipnext", "LipschitzEncoderTraining", "margin"),
    ],
)
def test_a_configuration_names_its_training(
    capsys: pytest.CaptureFixture[str], name: str, expected: str, setting: str
) -> None:
    model = printed(capsys, *arguments(f"encoders/{name}"), f"--model.{setting}=0.125")
    assert model["class_path"] == HEAD + expected
    assert model["init_args"][setting] == 0.125


@pytest.mark.parametrize(
    "name",
    sorted(
        path.stem
        for path in (CONFIGS / "encoders").glob("*.yaml")
        if "class_path: ellips.lightning_modules" in path.read_text()
    ),
)
def test_what_a_configuration_leaves_out_is_the_default_of_its_own_training(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    named = yaml.safe_load((CONFIGS / "encoders" / f"{name}.yaml").read_text())["model"]
    training = getattr(lightning_modules, named["class_path"].removeprefix(HEAD))
    parameters: dict[str, Parameter] = {}
    for each in reversed(training.__mro__):
        parameters |= signature(each.__init__).parameters if "__init__" in vars(each) else {}
    found = printed(capsys, *arguments(f"encoders/{name}"))["init_args"]
    left_out = {
        key: parameter.default
        for key, parameter in parameters.items()
        if key in found and key not in named["init_args"] and isinstance(parameter.default, bool | int | float | str)
    }
    assert left_out
    assert {key: found[key] for key in left_out} == left_out


@pytest.mark.parametrize(
    "name", ["cifar10_noise", "cifar10_clean", "cifar10_adversarial", "cifar10_denoiser", "cifar10_lipnext"]
)
def test_any_training_on_cifar10_takes_image_files(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as stop:
        train_encoder(["fit", *arguments(f"encoders/{name}", "encoders/cifar10_jpeg"), "--print_config"])
    assert stop.value.code == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["class_path"] == "ellips.datamodules.ImageFolderDataModule"
    assert data["init_args"]["keep_images"]
    assert "download" not in data["init_args"]


@pytest.mark.parametrize(
    ("name", "widths"), [("cifar10_lipnext_gpu", (512, 1024, 1024)), ("cifar10_lipnext_8gpus", (2048,))]
)
def test_larger_lipschitz_encoders_fit_together(
    capsys: pytest.CaptureFixture[str], name: str, widths: tuple[int, ...]
) -> None:
    given = printed(capsys, *arguments(f"encoders/{name}"), "--trainer.accelerator=cpu")
    sizes = given["init_args"]["architecture"]["init_args"]
    architecture = LipNeXtArchitecture(**{key: tuple(v) if isinstance(v, list) else v for key, v in sizes.items()})
    assert architecture.widths == widths


def test_what_is_no_training_of_an_encoder_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(f"model:\n  class_path: {HEAD}GenEllips\n")
    with pytest.raises(SystemExit) as stop:
        train_encoder(["fit", *arguments("encoders/digits_noise"), "--config", str(other)])
    assert stop.value.code != 0
    assert "EncoderTraining" in capsys.readouterr().err


def test_help_names_the_subcommands_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train_encoder(["--help"])
    assert stop.value.code == 0
    usage, first = capsys.readouterr().out.split("\n\n")[:2]
    assert "ellips train-encoder" in usage
    assert "{fit,validate}" in usage
    assert first.startswith("Subcommands: fit and validate.")

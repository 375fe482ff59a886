"""The shipped configurations: small files that combine, data × model, and what certify takes."""

from __future__ import annotations

import os
import subprocess
from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import yaml
from PIL import Image

from ellips.commands.certify import certify_parser
from ellips.commands.training import EllipsCLI, train
from ellips.datamodules.class_batches import ClassBatches
from ellips.lightning_modules import GenEllips
from ellips.vote_search import vote_radii
from tests.shipped import CONFIGS, arguments

OVER_DATA = ("data/noisy",)  # stand over the file of a data set, never alone


def names(folder: str) -> list[str]:
    found = [f"{folder}/{path.stem}" for path in sorted((CONFIGS / folder).glob("*.yaml"))]
    assert found
    return [name for name in found if name not in OVER_DATA]


class Parsed(EllipsCLI):
    """Reads and checks the configuration and builds nothing: no weights and no images are needed."""

    def before_instantiate_classes(self) -> None:
        return

    def instantiate_classes(self) -> None:
        return

    def after_instantiate_classes(self) -> None:
        return


@pytest.mark.parametrize("model", names("model"))
@pytest.mark.parametrize("data", names("data"))
def test_every_data_set_goes_with_every_model(data: str, model: str) -> None:
    given = arguments(data, model)
    cli = Parsed(GenEllips, L.LightningDataModule, subclass_mode_data=True, run=False, args=given)
    assert cli.config.data.class_path.startswith("ellips.datamodules.")
    assert cli.config.name == data.removeprefix("data/")
    assert cli.config.trainer.max_epochs >= 1


@pytest.mark.parametrize("model", ["model/smoothed", "model/votes"])
@pytest.mark.parametrize("data", names("data"))
def test_noise_goes_with_every_data_set_and_the_models_that_need_it(data: str, model: str) -> None:
    given = arguments(data, "data/noisy", model)
    config = Parsed(GenEllips, L.LightningDataModule, subclass_mode_data=True, run=False, args=given).config
    noisy, search = config.data.init_args, config.model.regularization
    assert search.sigma == noisy.augment.init_args.sigma
    assert float(vote_radii(noisy.val_copies, search.sigma, search.alpha)[-1]) >= search.radius
    losses = [loss.init_args for loss in config.model.objective or [] if "copies" in loss.init_args]
    assert all(loss.copies == noisy.copies for loss in losses)
    assert noisy.batch_by_image == bool(losses)


def test_a_projector_is_trained_by_votes_and_kept_by_votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*arguments("data/digits", "data/noisy", "model/votes"), "--name", "v", "--data.val_copies", "20"]
    given += ["--model.regularization.radius", "0.1", "--model.regularization.pooling", "[0.3]", "--data.copies", "2"]
    given += ["--model.objective", "[{class_path: ellips.losses.VoteCrossEntropy, init_args: {copies: 2}}]"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"]
    cli = train(["fit", *given, *quiet, "--trainer.check_val_every_n_epoch", "1", "--data.cache_dir", "cache"])
    assert sorted(path.name for path in (tmp_path / "runs" / "v" / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert cli.trainer.callback_metrics["val/votes/certified_accuracy@0.1"] > 0.5
    assert int(cli.model.head.moments.compute().count.sum()) == 2 * 1168
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()) == ["train", "val", "votes"]


@pytest.mark.parametrize("path", names("certify"))
@pytest.mark.parametrize("data", names("data"))
def test_every_data_set_goes_with_every_certification(data: str, path: str) -> None:
    config = certify_parser().parse_args(arguments(data, path))
    assert config.certifiers
    assert all(certifier.class_path.startswith("ellips.") for certifier in config.certifiers)
    assert max(config.input_radii or [0.0]) <= max(c.init_args.get("radius", 2.0) for c in config.certifiers)


def test_encoder_configurations_are_read_by_their_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ellips.commands.train_encoder import train_encoder

    monkeypatch.chdir(tmp_path)
    for name in names("encoders"):
        with pytest.raises(SystemExit) as stop:
            train_encoder(["fit", *arguments(name), "--print_config"])
        assert stop.value.code == 0


def test_nothing_shipped_is_chosen_in_units_of_raw_latents() -> None:
    """Pooling and shrinkage are chosen in no unit, on the image, or on the unit ball; checkpoints likewise."""
    for path in sorted((CONFIGS / "model").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        model = content["model"]
        search = model["regularization"]
        assert search == "auto" or "sigma" in search or model["latent_norm"] == "ball", path
        assert search != "auto" or not {"pooling", "shrinkage"} & model.keys(), path
        for callback in content["trainer"].get("callbacks", []):
            assert "/latent" not in callback["init_args"].get("monitor", ""), path


@pytest.mark.parametrize("data", ["data/imagenet", "data/imagenet_denoised"])
def test_a_thousand_classes_are_trained_on_in_batches_by_class(data: str) -> None:
    given = arguments(data, "model/paper_imagenet")
    config = Parsed(GenEllips, L.LightningDataModule, subclass_mode_data=True, run=False, args=given).config.data
    settings = config.init_args
    labels = np.arange(20_000) % 1000
    order = ClassBatches(labels, settings.batch_size, settings.images_per_class, num_replicas=4)
    first = labels[next(order.global_batches())]
    assert 0.95 <= len(first) / (4 * settings.batch_size) <= 1
    assert set(np.bincount(first).tolist()) == {0, settings.images_per_class}


def test_no_block_of_settings_stands_in_two_files() -> None:
    files = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name in ("data", "model", "certify"))
    for section in ("data", "model", "certifiers"):
        blocks = {path: yaml.safe_load(path.read_text()).get(section) for path in files}
        given = [(path, block) for path, block in blocks.items() if block is not None]
        for (one, first), (other, second) in [(a, b) for a in given for b in given if a[0] < b[0]]:
            assert first != second, (one, other)


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "image_folder"])
def test_every_entry_of_the_data_is_explained(name: str) -> None:
    lines = (CONFIGS / "data" / f"{name}.yaml").read_text().splitlines()
    section = lines[lines.index("data:") + 1 :]
    for before, line in pairwise(section):
        key, _, value = line.partition(":")
        structure = key.strip() in ("class_path", "init_args", "encoder")
        if value and line.strip() and not line.strip().startswith("#") and not structure:
            assert "#" in value or before.strip().startswith("#"), line


def test_the_batch_script_starts_each_command_and_requeues_what_a_signal_ended(tmp_path: Path) -> None:
    """The script with `srun` and `squeue` in place of SLURM's: what it would start, and when it requeues."""
    (script,) = sorted((CONFIGS / "slurm").glob("*.sbatch"))
    for name, text in {"srun": 'echo "$@"; exit ${CODE:-0}', "squeue": "echo $STATE", "scontrol": "echo $@"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    given |= {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "STATE": "RUNNING"}

    def said(*command: str, **more: str) -> list[str]:
        done = subprocess.run(["bash", str(script), *command], env=given | more, capture_output=True, text=True)
        return done.stdout.splitlines()

    trainer = "--trainer.num_nodes 2 --trainer.devices 4 --trainer.strategy ddp"
    assert said("certify", "--skip", "2") == [f"ellips certify --skip 2 {trainer}"]
    assert said("certify", SLURM_RESTART_COUNT="1") == [f"ellips certify {trainer} --overwrite false"]
    assert said("audit", "x") == ["ellips audit x --num_nodes 2 --devices 4"]
    sweep = {"SETTING": "model.pooling", "VALUES": "0.1 0.4", "NAME": "p", "SLURM_ARRAY_TASK_ID": "1"}
    (fit,) = said("fit", **sweep)
    assert fit.startswith(f"ellips fit {trainer} --trainer.callbacks+=ellips.callbacks.SafeRequeue --ckpt_path last")
    assert fit.endswith("--model.pooling 0.4 --name p-0.4")
    assert said("compare") == []
    for code, state, requeued in (("138", "RUNNING", 1), ("143", "RUNNING", 1), ("1", "RUNNING", 0), ("143", "C", 0)):
        assert said("encode", CODE=code, STATE=state)[1:] == ["requeue 7"] * requeued


def test_the_configuration_for_folders_trains_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for name, shade in (("bright", 200), ("dark", 40)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(generator.normal(shade, 20, (12, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    encoder = ["--data.encoder.model", "test_resnet", "--data.encoder.weights", "random"]
    given = [*arguments("data/image_folder", "model/small"), "--data.root", str(tmp_path / "images"), *encoder]
    given += ["--data.encoder.input_size", "32", "--data.resize", "12", "--data.crop", "12", "--data.num_workers", "0"]
    given += ["--model.latent_dim", "4", "--model.hidden_dim", "32", "--trainer.accelerator", "cpu"]
    quiet = ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
    quiet += ["--trainer.check_val_every_n_epoch", "1"]
    train(["fit", *given, *quiet])
    cli = train(["test", *given, *quiet])
    assert cli.trainer.callback_metrics["test/clean_accuracy"] == 1
    assert (tmp_path / "cache" / "image_folder" / "test" / "manifest.json").exists()

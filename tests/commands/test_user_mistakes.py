"""What users get wrong ends in one message with the cure, and the exit code 2: no traceback, no list of all options."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from ellips import EllipsHead, FrozenEncoder
from ellips.commands import main
from ellips.commands.messages import brief, in_one_message, message_of
from ellips.files import RunFolder

DIGITS = """
data:
  class_path: ellips.datamodules.DigitsDataModule
  init_args:
    encoder:
      class_path: ellips.encoders.FrozenEncoder
      init_args:
        model: digits
"""
PICTURES = DIGITS.replace("DigitsDataModule\n  init_args:", "ImageFolderDataModule\n  init_args:\n    root: pictures")
QUIET = "--trainer.accelerator=cpu --trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
FIT = f"fit --config digits.yaml {QUIET}"
FOLDER = f"fit --config pictures.yaml {QUIET} --data.init_args.root"
TEST = f"test --config digits.yaml {QUIET} --model.latent_dim=null"
CERTIFY = "certify --config digits.yaml --trainer.accelerator=cpu --name done"

# What was typed, and parts of what is said.
MISTAKES: list[tuple[str, tuple[str, ...]]] = [
    # ---- options and configurations
    (f"fit {QUIET}", ("required", "data")),
    (f"{FIT} --model.latnt_dim=3", ("--model.latnt_dim", "Did you mean --model.latent_dim?")),
    (f"{FIT} --trainer.max_epoch=3", ("--trainer.max_epoch", "Did you mean --trainer.max_epochs?")),
    (f"{FIT} --data.batch_sise=3", ("batch_sise", "not accepted")),
    (f"{FIT} --config latnt.yaml", ("model.latnt_dim", "Did you mean --model.latent_dim?")),
    (f"{FIT} --config sise.yaml", ("batch_sise", "not accepted")),
    (f"{FIT} --config modle.yaml", ("modle.latent_dim",)),
    (f"{FIT} --config missing.yaml", ("missing.yaml", "does not exist")),
    (f"{FIT} --config broken.yaml", ("broken.yaml",)),
    (f"{FIT} --model.latent_dim=abc", ("model.latent_dim", "int", "abc")),
    (f"{FIT} --model.latent_norm=cube", ("latent_norm", "cube")),
    (f"{FIT} --model.shrinkage=3", ("`shrinkage`", "[0, 1]", "3")),
    (f"fit {QUIET} --data=NoSuchData", ("data", "NoSuchData")),
    (f"{FIT} --trainer.precision=bf16-true", ("bf16-true", "bf16-mixed")),
    # ---- encoders and their weights
    (f"{FIT} --data.encoder.init_args.model=resnet9999 --data.encoder.init_args.weights=random", ("resnet9999",)),
    (f"{FIT} --data.encoder.init_args.weights=no.pth", ("'no.pth'", "leave them out")),
    (
        f"{FIT} --data.encoder.init_args.model=test_resnet --data.encoder.init_args.weights=no.pth",
        ("'no.pth'", "fetch the state dict"),
    ),
    (f"{FIT} --data.encoder.init_args.precision=64", ("precision", "'32'")),
    # ---- runs and loggers
    (f"{FIT} --name taken", ("already holds a run", "another --name")),
    (f"{FIT} --trainer.logger=WandbLogger", ("wandb", "pip install")),
    (f"{FIT} --ckpt_path no.ckpt", ("no.ckpt",)),
    (f"{TEST} --name nobody", ("runs/nobody/checkpoints/best.ckpt", "train first")),
    (f"{TEST} --ckpt_path damaged.ckpt", ("damaged.ckpt", "cut off or no checkpoint")),
    (f"{TEST} --ckpt_path https://example.org/a.ckpt", ("on this machine", "download it")),
    (
        f"{TEST} --name done --model.latent_dim=5",
        ("model that the checkpoint holds", "it was trained"),
    ),
    # ---- folders of pictures
    (f"{FOLDER}=nowhere", ("nowhere/train", "missing")),
    (f"{FOLDER}=~/nowhere", ("home/nowhere/train", "missing")),
    (f"{FOLDER}=pictures/train/cat", ("cat/train", "missing")),
    (f"{FOLDER}=flat", ("flat/train", "one sub-folder per class")),
    (f"{FOLDER}=differing --data.init_args.val_dir=test", ("differing/test", "'dog'")),
    (f"{FOLDER}=empty", ("empty", "every class folder", "cat")),
    # ---- certification, and what reads its results
    (f"{CERTIFY} --methds=[exact]", ("--methds", "Did you mean --methods?")),
    (f"{CERTIFY} --config modle.yaml", ("modle.latent_dim",)),
    (f"{CERTIFY} --methods=[best]", ("methods", "best")),
    (f"{CERTIFY} --radii=[0.5,0.1]", ("strictly ascending",)),
    (f"{CERTIFY} --max=0", ("`max_images`", "at least 1")),
    (
        f"{CERTIFY} --data.encoder.init_args.model=cifar10_noise",
        ("encoder that this head was trained on", "feature_dim"),
    ),
    ("check nothing.safetensors", ("nothing.safetensors", "there is none")),
    ("check notes.txt", ("notes.txt",)),
    ("compare nothing", ("nothing/certificates.csv", "`ellips certify` writes")),
    ("compare notes.tsv", ("notes.tsv",)),
    ("audit nothing", ("nothing/config.yaml", "`ellips certify` writes")),
    ("audit nothing --max=0", ("`max`", "at least 1")),
    ("audit nothing --attack.step=3", ("--attack.step", "Did you mean --attack.steps?")),
    ("collect nothing", ("nothing/config.yaml", "`ellips fit` writes")),
    # ---- single pictures
    ("certify-image nothing.png --name done", ("nothing.png", "missing")),
    ("certify-image notes.png broken.png --name done", ("2 of 2 pictures", "notes.png", "broken.png")),
    ("certify-image a.png --name nobody", ("runs/nobody/checkpoints/best.ckpt", "train first")),
    ("predict nothing --name done", ("nothing",)),
    ("predict hollow --name done", ("Expected pictures in hollow",)),
    # ---- the cache, plans and the rest
    ("encode --config digits.yaml", ("`cache_dir`", "--data.cache_dir")),
    ("encode --config missing.yaml", ("missing.yaml",)),
    ("encode --config digits.yaml --config sise.yaml", ("batch_sise", "not accepted")),
    ("encode --config digits.yaml --data.cache_dir=cache --splits=[trian]", ("trian",)),
    ("plan --config modle.yaml", ("modle.latent_dim",)),
    (f"train-encoder fit {QUIET} --modle.x=3", ("--modle.x",)),
    # ---- commands, paths and names
    ("fitt --config digits.yaml", ("no command 'fitt'", "Did you mean fit?")),
    ("train-encoder test", ("'test'", "'fit', 'validate'")),
    (f"{FIT} --name ../../elsewhere", ("`name`", "below runs/")),
    (f"{FIT} --name=", ("`name`", "below runs/")),
    ("certify --config digits.yaml --trainer.accelerator=cpu --name=/tmp/elsewhere", ("`name`", "below runs/")),
    (f"{CERTIFY} --out=notes.txt", ("notes.txt", "expected a folder", "a file of that name")),
    ("configs digits.yaml", ("digits.yaml/certify", "one of them is a file")),
    ("encode --config digits.yaml --data.cache_dir=digits.yaml", ("digits.yaml/train", "one of them is a file")),
    (f"{TEST} --ckpt_path pictures", ("pictures", "expected a file but it is a folder")),
    ("theory normality no.ckpt", ("ellips theory normality", "no.ckpt", "there is none")),
    # ---- classes and settings
    (f"{FIT} --trainer.callbacks=EarlyStoping", ("trainer.callbacks", "no class EarlyStoping")),
    (f"{FIT} --trainer.logger=CSVLoger", ("trainer.logger", "no class CSVLoger")),
    (f"{CERTIFY} --certifiers=[ellips.lipschitz.KnownConstant]", ("ellips certify", "required: constant")),
    (f"{FIT} --trainer.accelerator=gpu --trainer.devices=99", ("--trainer.accelerator cpu, or auto",)),
    (f"{FIT} --trainer.check_val_every_n_epoch=0", ("`check_val_every_n_epoch`", "at least 1")),
    (f"{FIT} --seed_everything=-1", ("-1", "--seed_everything")),
    (f"{FIT} --model.covariance_type=low_rank", ("`rank`", "None")),
    (f"{FIT} --config tabs.yaml", ("tabs.yaml", "line 2")),
    (f"{FIT} --config list.yaml", ("list.yaml", "sections by name", "list")),
    (f"fit --config pictures.yaml {QUIET} --model.latent_dim=null", ("pictures/train", "too few", "val_dir")),
    ('plan --config digits.yaml --counts={"trian":3}', ("`counts`", "trian")),
    ("plan --config digits.yaml --processes=0", ("`processes`", "at least 1")),
    ("plan --config digits.yaml --images_per_second=-1", ("`images_per_second`", "positive")),
    ("train-encoder fit --config digits.yaml --model.widths=[32]", ("widths", "model.architecture.init_args.widths")),
    ("train-encoder fit --config digits.yaml --config sizes.yaml", ("model.architecture.init_args.image_shape",)),
    ("compare notes.tsv:proved", ("notes.tsv", "'proved'", "'deterministic'")),
    ("check runs/done/checkpoints/best.ckpt", ("best.ckpt", "safetensors")),
    ("audit runs/done --budget=-1", ("`budget`", "positive")),
    ("audit --tsv=notes.tsv", ("required: model, data, soundness",)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that mistakes are made with."""
    folder = tmp_path_factory.mktemp("mistakes")
    texts = {
        "digits.yaml": DIGITS,
        "pictures.yaml": PICTURES,
        "latnt.yaml": "model:\n  latnt_dim: 3\n",
        "sise.yaml": DIGITS.replace("  init_args:\n    enc", "  init_args:\n    batch_sise: 3\n    enc"),
        "tabs.yaml": "model:\n\tlatent_dim: 3\n",
        "list.yaml": "- 1\n- 2\n",
        "sizes.yaml": "model:\n  image_shape: [1, 8, 8]\n",
        "modle.yaml": "modle:\n  latent_dim: 3\n",
        "broken.yaml": "model: [1, 2\n  x: }",
        **dict.fromkeys(("notes.txt", "notes.tsv", "notes.png", "flat/a.txt", "damaged.ckpt"), "notes"),
    }
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for root in ("pictures", "differing", "empty"):
                path = folder / root / split / name / "0.png"
                path.parent.mkdir(parents=True)
                Image.new("RGB", (8, 8)).save(path)
    shutil.rmtree(folder / "differing" / "test" / "dog")
    (folder / "empty" / "train" / "cat" / "0.png").unlink()
    whole = (folder / "pictures" / "train" / "cat" / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    for empty in ("flat/train", "hollow", "home", "runs/taken"):
        (folder / empty).mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "runs" / "taken" / "config.yaml").write_text("name: taken\n")
    encoder, generator = FrozenEncoder("digits"), torch.Generator().manual_seed(0)
    z, labels = torch.randn(200, 96, generator=generator), torch.arange(200) % 10
    head = EllipsHead(96, 10, latent_dim=None, shrinkage=0.5).fit(z, labels)
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    content = {"state_dict": state, "head": head.config, "encoder_fingerprint": encoder.fingerprint()}
    content["data"] = {"encoder": {"class_path": "ellips.encoders.FrozenEncoder", "init_args": {"model": "digits"}}}
    content |= {"pytorch-lightning_version": "2.6.0", "global_step": 0, "epoch": 0, "loops": {}}
    path = folder / RunFolder.named("done").best
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return folder


@pytest.mark.parametrize(("typed", "parts"), MISTAKES, ids=[typed[:70] for typed, _ in MISTAKES])
def test_a_mistake_is_one_message(
    typed: str,
    parts: tuple[str, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    before = {path for path in folder.rglob("*") if "runs" in path.parts and path.is_file()}
    code = in_one_message(main, typed.split())
    said = capsys.readouterr().err
    assert code == 2, said
    for part in parts:
        assert part in said
    for noise in ("Traceback", "Namespace(", "Union subtypes", "💡"):
        assert noise not in said
    message = said.split("ellips", 1)[-1]
    assert len(message) < 1500, "more than a user reads"
    assert {path for path in folder.rglob("*") if "runs" in path.parts and path.is_file()} == before, "a run was begun"


def test_there_are_enough() -> None:
    assert len({typed for typed, _ in MISTAKES}) == len(MISTAKES) >= 40


def test_debug_shows_where_it_arose() -> None:
    with pytest.raises(FileNotFoundError, match="there is none"):
        in_one_message(main, ["check", "--debug", "nothing.safetensors"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_stop_ends_in_a_line(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(given: object) -> int:
        raise error

    assert in_one_message(stopped, ["fit", "--config", "x.yaml"]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--ckpt_path last" in said


def test_a_fault_of_the_programs_own_is_not_hidden() -> None:
    def faulty(given: object) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_one_message(faulty, ["fit"])
    assert message_of(RuntimeError("anything")) is None


def test_the_message_of_a_reading_process_is_the_readers() -> None:
    text = (
        "Caught BadImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    )
    assert brief(f"{text}datamodules.folder.BadImageError: a.png: expected an image.\n  b.png: too") == (
        "a.png: expected an image.\n  b.png: too"
    )


def test_what_a_disk_says_has_its_file() -> None:
    assert message_of(PermissionError(13, "Permission denied", "runs/x")) == "runs/x: Permission denied."

"""Files of strangers: whatever they name or hold, nothing of it is imported or called.

Each hostile file does something that leaves a mark if it runs: a module that marks its own import, a pickle that marks
its own reading. The module can be imported from where the test stands, so that only a refusal keeps it from running.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ellips import EllipsHead, FrozenEncoder, ImageClassifier
from ellips.commands import main
from ellips.commands.audit import Vouched, read_claims
from ellips.commands.trust import BUILDABLE, build_recorded, check_hyperparameters
from ellips.encoders.weights import load_file
from ellips.errors import EncoderMismatchError
from ellips.files import ResultsFolder, RunFolder, load_certificates, read_configuration, read_table, read_tsv

RESULTS = RunFolder(Path(__file__).parents[1] / "data/version_0_1/run").results("test")
EVIL = """
import lightning as L
from pathlib import Path
Path(__file__).with_name("MARK").touch()
class Thing(L.LightningDataModule):
    def __init__(self, *args, **kwargs):
        super().__init__()
def call(*args, **kwargs):
    return Thing()
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The mark that a hostile module leaves where tests stand; it can be imported as `evil` and as `run.evil`."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "MARK"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("evil", "run")]:
        del sys.modules[name]


@pytest.fixture
def folder(mark: Path) -> ResultsFolder:
    """Results of version 0.1, in a folder that holds the hostile module too."""
    shutil.copytree(RESULTS.path, mark.parent / "run")
    shutil.copy(mark.parent / "evil.py", mark.parent / "run")
    return ResultsFolder(mark.parent / "run")


def saved() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(RESULTS.config.read_text())
    content["certifiers"] = content.pop("sources")
    content["data"]["init_args"]["encoder"]["init_args"]["model"]["class_path"] = "ellips.encoders.LipschitzEncoder"
    return content


def altered(place: str, value: object) -> dict[str, Any]:
    """A configuration with one entry replaced, by dotted place."""
    content = saved()
    *above, last = place.split("/")
    at: Any = content
    for name in above:
        at = at[int(name) if isinstance(at, list) else name]
    at[int(last) if isinstance(at, list) else last] = value
    return content


ENCODER = "data/init_args/encoder"
HOSTILE = {
    "a datamodule": altered("data/class_path", "evil.Thing"),
    "a datamodule inside the folder": altered("data/class_path", "run.evil.Thing"),
    "a function as datamodule": altered("data/class_path", "evil.call"),
    "a text for the data": altered("data", "evil.Thing"),
    "JSON for the data": altered("data", '{"class_path": "evil.Thing"}'),
    "a file for the data": altered("data", "nested.yaml"),
    "an encoder": altered(ENCODER, {"class_path": "evil.Thing"}),
    "a text for the encoder": altered(ENCODER, "evil.Thing"),
    "a file for the encoder": altered(ENCODER, "nested.yaml"),
    "a model": altered(f"{ENCODER}/init_args/model", {"class_path": "evil.Thing"}),
    "a text for the model": altered(f"{ENCODER}/init_args/model", "evil.Thing"),
    "arguments by another name": altered("data/dict_kwargs", {"x": {"class_path": "evil.Thing"}}),
    "an argument that there is not": altered("data/init_args/evil", {"class_path": "evil.Thing"}),
    "a certifier": altered("certifiers/0", {"class_path": "evil.Thing"}),
    "a text for a certifier": altered("certifiers/0", "evil.Thing"),
    "a source inside a certifier": altered(
        "certifiers/0",
        {"class_path": "ellips.input_certifiers.ByConstant", "init_args": {"source": {"class_path": "evil.Thing"}}},
    ),
    "a library's function": altered("data/class_path", "os.system"),
    "what a module of the project imports": altered("data/class_path", "ellips.encoders.weights.timm.create_model"),
    "a model of the hub by timm's own prefix": altered(f"{ENCODER}/init_args/model", "hf-hub:evil/evil"),
    "class paths that are no text": altered("data/class_path", ["evil.Thing"]),
    "arguments that are a text": altered("data/init_args", "evil.Thing"),
}

BY_TIMM = ("a text for the model", "a model of the hub by timm's own prefix")
"""What timm's list of names refuses: a text is never more than the name of an architecture."""


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_that_a_results_folder_names_is_imported(what: str, folder: ResultsFolder, mark: Path) -> None:
    nested = {"class_path": "evil.Thing"}
    for where in (mark.parent, folder.path):
        (where / "nested.yaml").write_text(yaml.safe_dump(nested))
    folder.config.write_text(yaml.safe_dump(HOSTILE[what]))
    before = set(sys.modules)
    with pytest.raises(ValueError, match="timm model name" if what in BY_TIMM else str(folder.config)):
        Vouched().build(folder)
    assert not mark.exists()
    assert not {name for name in set(sys.modules) - before if "evil" in name}


@pytest.mark.parametrize("place", ["trainer/callbacks", "data/init_args/augment", "trainer/logger", "model", "radii"])
def test_what_has_no_part_in_an_audit_is_passed_over(place: str, folder: ResultsFolder, mark: Path) -> None:
    for value in ("evil.call", {"class_path": "evil.Thing"}, [{"class_path": "evil.Thing"}]):
        folder.config.write_text(yaml.safe_dump(altered(place, value)))
        assert type(Vouched().build(folder)["data"]).__name__ == "DigitsDataModule"
    assert not mark.exists()


def test_who_trusts_a_folder_gets_what_it_names(folder: ResultsFolder, mark: Path) -> None:
    """The same file that is refused above does run then: the tests above can fail."""
    folder.config.write_text(yaml.safe_dump(altered("data", {"class_path": "evil.Thing"})))
    assert type(Vouched(trust=True).build(folder)["data"]).__name__ == "Thing"
    assert mark.exists()


def test_the_command_refuses_from_inside_the_folder_and_says_the_cure(
    folder: ResultsFolder, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")
    monkeypatch.chdir(folder.path)
    monkeypatch.syspath_prepend(str(folder.path))
    folder.config.write_text(yaml.safe_dump(altered("data/class_path", "evil.Thing")))
    with pytest.raises(ValueError, match=r"'evil.Thing', of which nothing is imported.*--config FILE.*--trust"):
        main(["audit", ".", "--accelerator=cpu"])
    assert str(folder.path) not in sys.path
    assert not mark.exists()
    assert not (folder.path / "MARK").exists()


def test_a_configuration_of_the_user_takes_the_place_of_the_folders(folder: ResultsFolder, mark: Path) -> None:
    own = mark.parent / "own.yaml"
    content = saved()
    own.write_text(yaml.safe_dump({name: content[name] for name in ("data", "certifiers", "input_method")}))
    folder.config.write_text(yaml.safe_dump(altered("data/class_path", "evil.Thing")))
    chosen = Vouched(configs=(own,)).build(folder)
    assert type(chosen["data"]).__name__ == "DigitsDataModule"
    assert [type(certifier).__name__ for certifier in chosen["certifiers"]] == ["SpectralProduct"]
    assert not mark.exists()


def test_settings_that_write_or_fetch_are_left_out(mark: Path) -> None:
    settings = {"class_path": "ellips.datamodules.CIFAR10DataModule", "init_args": saved()["data"]["init_args"]}
    settings["init_args"] |= {"cache_dir": str(mark.parent / "cache"), "download": True, "num_workers": 10**6}
    data = build_recorded(settings, Path("config.yaml"))
    assert (data.cache_dir, data.download, data.num_workers) == (None, False, 0)


def test_the_list_is_of_this_project_and_two_layers_of_torch() -> None:
    assert {path for path in BUILDABLE if not path.startswith("ellips.")} == {"torch.nn.Flatten", "torch.nn.Identity"}
    assert all(kind.__module__.startswith(("ellips.", "torch.nn.modules")) for kind in BUILDABLE.values())


# ------------------------------------------------------------------ YAML

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 30)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join(10 * [f'*a{i - 1}'])}]}}\n" for i in range(1, 30))


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:evil.call []",
        "data: !!python/name:evil.call",
        "data: !!python/object:evil.Thing {}",
        "data: !!python/module:evil",
        BOMB,
        MERGED,
        "data: &a [*a]",
        "data: &a {b: *a}",
        "[" * 5000,
        "- a",
        "",
        "a: [",
        "a: \x00",
    ],
)
def test_yaml_of_a_stranger_is_read_as_data_or_refused_with_its_name(text: str, mark: Path) -> None:
    path = mark.parent / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)):
        read_configuration(path)
    assert not mark.exists()


# ------------------------------------------------------------------ pickles where tensors are expected


class Payload:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_the_payload_runs_when_it_is_read_as_a_pickle(mark: Path) -> None:
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_checkpoints_and_weights_that_hold_code_are_refused(form: str, mark: Path) -> None:
    path = mark.parent / "last.ckpt"
    content = {"state_dict": {}, "head": {"in_features": Payload(mark)}, "hyper_parameters": Payload(mark)}
    torch.save(content, path) if form == "torch" else path.write_bytes(pickle.dumps(content))
    data = ["--data=ellips.datamodules.DigitsDataModule", "--data.encoder=ellips.encoders.FrozenEncoder"]
    data += ["--data.encoder.model=test_resnet", "--data.encoder.weights=digits"]
    readers = (
        lambda: EllipsHead.from_checkpoint(path),
        lambda: main(["certify", *data, f"--ckpt_path={path}"]),
        lambda: main(["test", *data, f"--ckpt_path={path}"]),
    )
    for read in readers:
        with pytest.raises(ValueError, match=r"last\.ckpt") as refused:
            read()
        assert "weights_only" not in str(refused.value), "advice to open it without restriction"
    assert main(["theory", "localization", str(path)]) == 2
    weights = path.with_suffix(".pth")
    path.rename(weights)
    with pytest.raises(ValueError, match=r"last\.pth"):
        load_file(weights)
    assert not mark.exists()


def test_pickles_under_the_names_of_other_files_are_refused(folder: ResultsFolder, mark: Path) -> None:
    blob = pickle.dumps(Payload(mark))
    proofs = next(folder.path.glob("latent-*.safetensors"))
    for path, read in (
        (proofs, load_certificates),
        (folder.table, read_table),
        (next(folder.path.glob("*.tsv")), read_tsv),
        (folder.config, read_configuration),
        (folder.path / "weights.safetensors", load_file),
    ):
        path.write_bytes(blob)
        with pytest.raises(ValueError, match=path.name):
            read(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimization": {"class_path": "evil.Thing"}},
        {"optimization": "evil.Thing"},
        {"optimization": '{"class_path": "evil.Thing"}'},
        {"optimization": "nested"},
        {"objective": [{"class_path": "evil.Thing"}]},
        {"objective": ["evil.Thing"]},
        {"_class_path": "evil.Thing"},
        {"optimization.class_path": "evil.Thing"},
    ],
)
def test_what_a_checkpoint_names_as_settings_is_not_imported(settings: dict[str, Any], mark: Path) -> None:
    """Lightning hands a checkpoint's hyper-parameters to the parser, which would import them."""
    (mark.parent / "nested").write_text('{"class_path": "evil.Thing"}')
    path = mark.parent / "last.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": settings}, path)
    data = ["--data=ellips.datamodules.DigitsDataModule", "--data.encoder=ellips.encoders.FrozenEncoder"]
    with pytest.raises(ValueError, match="could name code"):
        main(
            ["test", *data, "--data.encoder.model=test_resnet", "--data.encoder.weights=digits", f"--ckpt_path={path}"]
        )
    assert not mark.exists()


def test_settings_that_runs_of_this_project_record_pass() -> None:
    plain = {"latent_dim": 16, "latent_norm": "none", "pooling": None, "radii": [0.1, 0.2], "_instantiator": "x.y"}
    check_hyperparameters({"hyper_parameters": plain}, None, "last.ckpt")
    own = {"_class_path": "ellips.lightning_modules.DenoiserTraining", "flip": True}
    check_hyperparameters({"hyper_parameters": own}, None, "last.ckpt")


def test_a_web_address_is_no_checkpoint() -> None:
    data = ["--data=ellips.datamodules.DigitsDataModule", "--data.encoder=ellips.encoders.FrozenEncoder"]
    with pytest.raises(ValueError, match="download it"):
        main(["test", *data, "--data.encoder.model=test_resnet", "--ckpt_path=http://example.com/last.ckpt"])


def test_archives_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.py", EVIL)
        archive.writestr("data.pkl", json.dumps({}))
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        EllipsHead.from_checkpoint(path)


# ------------------------------------------------------------------ what was stripped


def test_a_checkpoint_that_does_not_say_its_encoder_is_refused(digits_checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(digits_checkpoint, weights_only=True)
    del content["encoder_fingerprint"]
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(EncoderMismatchError, match=r"last\.ckpt to say which encoder"):
        ImageClassifier.from_checkpoint(tmp_path / "last.ckpt", FrozenEncoder("test_resnet", weights="digits"))


@pytest.mark.parametrize("name", ["encoder", "certifiers", "checkpoint", "split", "head_digest", "images", "max"])
def test_settings_of_a_run_that_lack_an_entry_are_refused(name: str, folder: ResultsFolder) -> None:
    settings = json.loads(folder.settings.read_text()) | {"encoder": {}}
    settings["certifiers"] = settings.pop("sources")
    del settings[name]
    folder.settings.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"settings\.json: expected the entries \['{name}'\].*--overwrite true"):
        read_claims(folder, None, torch.device("cpu"))

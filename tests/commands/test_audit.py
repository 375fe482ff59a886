"""`ellips audit`: shared by processes, killed in the middle, and after a run that changed."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")

from ellips.audit import AttackSettings
from ellips.commands import audit as command
from ellips.commands import certify, encode
from ellips.files import Journal, ResultsFolder, read_json, read_table, write_table
from ellips.files.latents import write_latent
from ellips.files.lines import CHECKSUMS
from ellips.files.records import ImageRecord
from ellips.types import Series
from tests.processes import run_together

QUICK = AttackSettings(steps=2, restarts=1, autoattack_points=1, queries=2, batch_size=4)
IMAGES = 10


def data_arguments(folder: Path) -> list[str]:
    arguments = {
        "data": "ellips.datamodules.DigitsDataModule",
        "data.encoder": "ellips.encoders.FrozenEncoder",
        "data.encoder.model": "test_resnet",
        "data.encoder.weights": "digits",
        "data.cache_dir": str(folder / "cache"),
        "data.shard_rows": "100",
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


def certify_arguments(folder: Path, checkpoint: Path) -> list[str]:
    arguments = {
        "certifiers": "[{class_path: ellips.lipschitz.JacobianNorm, init_args: {num_iterations: 5}}]",
        "methods": "[exact]",
        "batch_size": "4",
        "max": str(IMAGES),
        "ckpt_path": str(checkpoint),
        "out": str(folder / "run"),
        "trainer.accelerator": "cpu",
    }
    return [*data_arguments(folder), *(f"--{name}={value}" for name, value in arguments.items())]


@pytest.fixture(scope="module")
def run(digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cache of a split, a run and its audit, all made by this process alone."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes
    encode.main([*data_arguments(folder), "--accelerator=cpu", "--splits=[test]"])
    assert certify.main(certify_arguments(folder, digits_checkpoint)) == 0
    command.audit(ResultsFolder(folder / "run"), QUICK)
    torch.set_num_threads(threads)
    return folder


def in_turn(folder: Path, commands: list[list[str]]) -> None:
    """Run commands one after the other, as one of several processes, and write down what this one says."""
    os.chdir(folder)
    with Path(f"said-{os.environ['RANK']}.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        for name, *arguments in commands:
            import_module(f"ellips.commands.{name}").main(arguments)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "audit.csv").read_text().splitlines()))


def test_encode_certify_and_audit_give_in_two_processes_what_they_give_in_one(
    run: Path, digits_checkpoint: Path, tmp_path: Path
) -> None:
    attack = [f"--attack.{name}={getattr(QUICK, name)}" for name in ("steps", "restarts", "queries", "batch_size")]
    both = ["--accelerator=cpu", "--devices=2"]
    commands = [
        ["encode", *data_arguments(tmp_path), *both, "--splits=[test]"],
        [
            "certify",
            *certify_arguments(tmp_path, digits_checkpoint),
            "--trainer.devices=2",
            "--trainer.strategy=ddp",
        ],
        ["audit", str(tmp_path / "run"), *both, *attack, "--attack.autoattack_points=1"],
    ]
    run_together(in_turn, tmp_path, commands)
    said = [(tmp_path / f"said-{rank}.txt").read_text() for rank in range(2)]
    for name in ("manifest.json", "shard-00003.safetensors"):
        assert (tmp_path / "cache/test" / name).read_bytes() == (run / "cache/test" / name).read_bytes(), name
    shares = [path.read_text().count("\n") - 1 for path in (tmp_path / "run/journal").glob("rows-*.csv")]
    assert sorted(shares) == [8, 12]  # two series of ten images in batches of four
    assert "Audit" in said[0]
    assert "Audit" not in said[1]
    assert rows(tmp_path / "run") == rows(run / "run")
    assert not (tmp_path / "run/audit-journal").exists()


def test_a_killed_audit_goes_on_where_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, folder = rows(run / "run"), ResultsFolder(run / "run")
    assert len(expected) == 2 * IMAGES
    attacked: list[int] = []
    whole = command.audit_batch

    def counted(batch: command.AttackBatch, *rest: object) -> object:
        if len(attacked) == 4:
            raise KeyboardInterrupt
        attacked.append(len(batch.records))
        return whole(batch, *rest)

    monkeypatch.setattr(command, "audit_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        command.audit(folder, QUICK)
    with (folder.audit_journal / "lines-0.jsonl").open("a") as file:
        file.write('{"name": "latent-exact/')  # as a killed process leaves it
    with pytest.raises(ValueError, match=r"differs in attack .*'steps': 2.*'steps': 9"):
        command.audit(folder, AttackSettings(steps=9))
    monkeypatch.setattr(command, "audit_batch", lambda batch, *rest: attacked.append(9) or whole(batch, *rest))
    found = command.audit(folder, QUICK)
    assert attacked == [4, 4, 2, 4, 9, 9]  # six batches in all, none twice
    assert found["series"]["latent-exact"]["violations"] == 0
    assert rows(run / "run") == expected


def test_an_audit_that_shall_start_anew_forgets_what_was_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ResultsFolder(shutil.copytree(run / "run", tmp_path / "run"))  # the others need what was found
    with command.LineJournal(folder.audit_journal, {"attack": "another"}).open(0):
        pass
    monkeypatch.setattr(command, "audit_batch", lambda *rest: [])
    with pytest.raises(ValueError, match="another"):
        command.audit(folder, QUICK)
    assert command.audit(folder, QUICK, overwrite=True)["series"] == {}


# ------------------------------------------------------------------ folders whose numbers are not of what they name


LATENT, INPUT = Series("latent", "exact"), Series("input", "exact", "jacobian-norm")
FORGED: dict[str, tuple[Callable[[ImageRecord], ImageRecord], str]] = {
    "each prediction is said to be right": (lambda r: replace(r, label=(r.label + 1) % 10), "labels of the data"),
    "an image that was not to be certified": (lambda r: replace(r, index=r.index + 1), r"has others: \[10\]"),
    "an image in the place of another": (lambda r: replace(r, index=min(r.index, 8)), r"come more often: \[8\]"),
    "an estimate that is called a proof": (
        lambda r: replace(r, soundness="deterministic") if r.series == INPUT else r,
        "'estimated' at most, which is all that jacobian-norm does, but the table says 'deterministic'",
    ),
}


@pytest.fixture
def forged(run: Path, tmp_path: Path) -> ResultsFolder:
    """A copy of the run that says nothing of the table's digest."""
    shutil.copytree(run / "run", tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    return ResultsFolder(tmp_path / "run")


@pytest.mark.parametrize("what", FORGED)
def test_tables_whose_rows_are_not_of_the_data_are_refused(what: str, forged: ResultsFolder) -> None:
    alter, message = FORGED[what]
    records = read_table(forged.table)
    assert {record.series for record in records} == {LATENT, INPUT}
    command.read_claims(forged, None, torch.device("cpu"))
    write_table(forged.table, map(alter, records))
    with pytest.raises(ValueError, match=message):
        command.read_claims(forged, None, torch.device("cpu"))


def test_latents_that_are_not_those_of_the_images_are_refused(forged: ResultsFolder) -> None:
    """With a latent at its class's mean every image has a large radius, which can be proven and cannot be broken."""
    settings = {name: value for name, value in read_json(forged.settings).items() if name != CHECKSUMS}
    journal = Journal(forged, [LATENT, INPUT], settings)
    latents, key = journal.latents(), journal._write_key
    moved = latents | {3: latents[7]}
    with (forged.journal / "latents-0.bin").open("wb") as file:
        for index, latent in moved.items():
            write_latent(file, index, latent, key)
    with pytest.raises(ValueError, match=r"of 1 of the 10 that were encoded anew they are others \(\[3\]\)"):
        command.read_claims(forged, None, torch.device("cpu"))

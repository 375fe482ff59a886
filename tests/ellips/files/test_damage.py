"""Bits that flip, files of other runs, entries that are taken away: what is read is what was written, or is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ellips import Ellips
from ellips.files import ImageRecord, Journal, LineJournal, ResultsFolder, load_certificates, save_certificates
from ellips.files.results import read_results
from ellips.reporting.run import RunReport
from ellips.types import Series

SERIES = [Series("latent", "exact"), Series("input", "exact", "known-constant")]
SETTINGS = {"split": "test", "encoder": {"weights": "sha256:a"}}


def rows(index: int) -> list[ImageRecord]:
    return [ImageRecord(index, 1, 1, 0.74, 0.1, series, margin=0.5, multiplier=1.5) for series in SERIES]


def fill(folder: Path, indices: list[int], rank: int = 0, settings: dict[str, Any] = SETTINGS) -> Journal:
    kept = {SERIES[1]: torch.full((3,), 7.5, dtype=torch.float64)}
    with Journal(ResultsFolder(folder), SERIES, settings).open(rank) as journal:
        for index in indices:
            journal.append(rows(index), torch.full((3,), index + 0.1, dtype=torch.float64), kept)
    return journal


def content(folder: Path) -> dict[int, tuple[Any, ...]]:
    """All that a journal holds, by image."""
    journal = Journal(ResultsFolder(folder), SERIES, SETTINGS)
    found: dict[int, list[ImageRecord]] = {}
    for record in journal.records():
        found.setdefault(record.index, []).append(record)
    latents, kept = journal.latents(), journal.kept().get(SERIES[1], {})
    return {index: (found[index], latents[index].tolist(), kept[index].tolist()) for index in journal.done()}


def flipped(path: Path, count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """The file with one bit changed, at random places."""
    whole, draw = path.read_bytes(), random.Random(seed)
    for _ in range(count):
        bit = draw.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def outcome(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What is read, or what was said instead."""
    try:
        return read(), None
    except ValueError as error:
        return None, str(error)


def survives(path: Path, count: int, read: Callable[[], Any], part: Callable[[Any, Any], bool]) -> int:
    """Flip bits and read; return how often that was refused. What is read must be a part of what was written."""
    whole, expected, refused = path.read_bytes(), read(), 0
    for bit, changed in flipped(path, count, seed=count):
        path.write_bytes(changed)
        found, said = outcome(read)
        if said is None:
            assert part(found, expected), f"bit {bit} of {path.name} went unnoticed"
        else:
            assert path.name in said or "differs in" in said, f"{path.name} is not named: {said}"
            refused += 1
    path.write_bytes(whole)
    return refused


COUNTS = pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.faults)])


@COUNTS
@pytest.mark.parametrize("name", ["rows-0.csv", "latents-0.bin", f"kept-{SERIES[1].name}-rank-0.bin", "settings.json"])
def test_a_flipped_bit_in_a_journal_is_refused_or_costs_the_image(tmp_path: Path, name: str, count: int) -> None:
    fill(tmp_path, list(range(12)))
    path = tmp_path / "journal" / name
    refused = survives(path, count, lambda: content(tmp_path), lambda found, all_: found.items() <= all_.items())
    assert refused > 0.8 * count


@COUNTS
def test_a_flipped_bit_in_the_journal_of_an_audit_is_refused(tmp_path: Path, count: int) -> None:
    journal = LineJournal(tmp_path / "journal", SETTINGS)
    with journal.open(0):
        for number in range(12):
            journal.append(f"latent-exact/{number}", [{"radius": 0.74}])
    path = tmp_path / "journal" / "lines-0.jsonl"
    refused = survives(path, count, journal.results, lambda found, all_: found.items() <= all_.items())
    assert refused > 0.8 * count


@COUNTS
def test_a_flipped_bit_in_a_file_of_certificates_is_refused(tmp_path: Path, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    ellips = Ellips(2, 3, shrinkage=0.5).fit(z, torch.arange(40) % 2)
    path = save_certificates(tmp_path / "c.safetensors", ellips.certify(z), z, ellips, torch.arange(40))

    def read() -> tuple[Any, ...]:
        saved = load_certificates(path)
        tensors = {**saved.certificate.tensors(), "z": saved.z, "index": saved.index}
        return saved.certificate.method, saved.digest, {name: value.tolist() for name, value in tensors.items()}

    assert survives(path, count, read, lambda found, expected: found == expected) > 0.8 * count


def test_a_table_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    records = [row for index in range(3) for row in rows(index)]
    RunReport(folder, records, [0, 1, 2], {"latent": [0.1], "input": [0.1]}).write()
    assert read_results(folder) == records
    folder.table.write_text(folder.table.read_text().replace("0.74", "9.74", 1))
    with pytest.raises(ValueError, match=r"certificates\.csv to have the SHA-256 .* certify again"):
        read_results(folder)


# ------------------------------------------------------------------ what belongs to another run


def test_a_journal_without_settings_is_refused_with_the_cure(tmp_path: Path) -> None:
    fill(tmp_path, [0])
    (tmp_path / "journal/settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json.*rows-0\.csv|settings\.json.*is missing.*--overwrite true"):
        Journal(ResultsFolder(tmp_path), SERIES, SETTINGS)


@pytest.mark.parametrize("name", ["rows-0.csv", "latents-0.bin", f"kept-{SERIES[1].name}-rank-0.bin"])
def test_a_file_of_another_run_is_refused_and_may_be_removed(tmp_path: Path, name: str) -> None:
    other = {**SETTINGS, "encoder": {"weights": "sha256:b"}}
    fill(tmp_path / "here", [0, 1])
    fill(tmp_path / "there", [2, 3], settings=other)
    foreign = tmp_path / "here/journal" / name.replace("0", "1")
    foreign.write_bytes((tmp_path / "there/journal" / name).read_bytes())
    with pytest.raises(ValueError, match=rf"{foreign.name}.*of another run. Remove this one file"):
        content(tmp_path / "here")
    foreign.unlink()
    assert content(tmp_path / "here").keys() == {0, 1}


def test_rows_without_checksums_are_taken_from_journals_alone_that_were_begun_so(tmp_path: Path) -> None:
    fill(tmp_path, [0, 1])
    path, settings = tmp_path / "journal/rows-0.csv", tmp_path / "journal/settings.json"
    path.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in path.read_text().splitlines()))
    with pytest.raises(ValueError, match=r"rows-0\.csv: expected the columns"):
        content(tmp_path)
    old = tmp_path / "old"
    (old / "journal").mkdir(parents=True)
    (old / "journal/rows-0.csv").write_text(path.read_text())
    stored = json.loads(settings.read_text())
    (old / "journal/settings.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "checksums"}))
    journal = fill(old, [2])
    assert [record.index for record in journal.records()] == [0, 0, 1, 1, 2, 2]
    assert journal.done() == {2}, "the latents of the others are not there"


@pytest.mark.parametrize("width", [-2, 0, 2**62, -(2**63), 2**20])
def test_widths_that_cannot_be_end_the_reading(tmp_path: Path, width: int) -> None:
    fill(tmp_path, [0, 1])
    path = tmp_path / "journal/latents-0.bin"
    data = bytearray(path.read_bytes())
    data[8:16] = width.to_bytes(8, "little", signed=True)
    path.write_bytes(data)
    if width != 2**20:
        with pytest.raises(ValueError, match=r"latents-0\.bin, byte 0: expected a position and a width"):
            content(tmp_path)
    else:
        assert content(tmp_path) == {}, "as one that was cut off"


def test_zeros_that_a_crash_leaves_at_the_end_count_as_cut_off(tmp_path: Path) -> None:
    fill(tmp_path, [0, 1])
    expected = content(tmp_path)
    for path in (tmp_path / "journal").glob("*-*"):
        path.write_bytes(path.read_bytes() + bytes(512))
    assert content(tmp_path) == expected
    fill(tmp_path, [2])
    assert content(tmp_path).keys() == {0, 1, 2}


# ------------------------------------------------------------------ nothing of others is removed


def test_removing_results_leaves_what_the_run_did_not_write(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    fill(tmp_path, [0])
    records = rows(0)
    RunReport(folder, records, [0], {"latent": [0.1], "input": [0.1]}).write()
    with LineJournal(folder.audit_journal, SETTINGS).open(0):
        pass
    folder.config.write_text("data: null\n")
    others = [tmp_path / name for name in ("checkpoints/last.ckpt", "metrics.csv", "notes.txt", "journal/notes.txt")]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    folder.remove()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)
    assert not folder.audit_journal.exists()
    folder.remove()  # nothing there is fine, too

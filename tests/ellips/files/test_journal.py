from pathlib import Path

import pytest
import torch

from ellips.files import ImageRecord, Journal, ResultsFolder
from ellips.types import Series

SERIES = [Series("latent", "exact"), Series("input", "exact", "known-constant")]
SETTINGS = {"split": "test", "radii": (1, 2)}


def rows(index: int) -> list[ImageRecord]:
    return [ImageRecord(index, 1, 1, 0.5, 0.1, series) for series in SERIES]


def latent(index: int) -> torch.Tensor:
    return torch.full((3,), index + 0.1, dtype=torch.float64)


def fill(folder: Path, rank: int, indices: list[int]) -> None:
    with Journal(ResultsFolder(folder), SERIES, SETTINGS).open(rank) as journal:
        for index in indices:
            journal.append(rows(index), latent(index))


def test_rows_of_all_processes_come_back_in_order_and_once(tmp_path: Path) -> None:
    fill(tmp_path, 0, [4, 0])
    fill(tmp_path, 1, [2, 4])
    journal = Journal(ResultsFolder(tmp_path), SERIES, SETTINGS)
    assert [(r.index, r.series) for r in journal.records()] == [(i, s) for i in (0, 2, 4) for s in SERIES]
    assert journal.done() == {0, 2, 4}
    assert {index: z.tolist() for index, z in journal.latents().items()} == {i: latent(i).tolist() for i in (0, 2, 4)}


@pytest.mark.parametrize("lost", [1, 5, 60, 100])
def test_what_was_cut_off_is_not_done_and_does_not_hinder(tmp_path: Path, lost: int) -> None:
    fill(tmp_path, 0, [0, 1, 2])
    path = tmp_path / "journal" / "rows-0.csv"
    path.write_bytes(path.read_bytes()[:-lost])
    binary = tmp_path / "journal" / "latents-0.bin"
    binary.write_bytes(binary.read_bytes()[:-lost])
    journal = Journal(ResultsFolder(tmp_path), SERIES, SETTINGS)
    done = journal.done()
    assert done < {0, 1, 2}
    fill(tmp_path, 0, sorted({0, 1, 2} - done))
    assert [r.index for r in journal.records()] == [0, 0, 1, 1, 2, 2]
    assert set(journal.latents()) == {0, 1, 2}


def test_a_row_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    journal = Journal(ResultsFolder(tmp_path), SERIES, SETTINGS).open(0)
    journal.append(rows(7), latent(7))
    assert Journal(ResultsFolder(tmp_path), SERIES, SETTINGS).done() == {7}
    journal.close()


@pytest.mark.parametrize("lost", [0, 1, 30, 60])
def test_latents_kept_for_one_series_come_back_or_the_image_is_not_done(tmp_path: Path, lost: int) -> None:
    kept = {SERIES[1]: torch.full((3,), 7.5, dtype=torch.float64)}
    for rank, indices in ((0, [0, 2]), (1, [1])):
        with Journal(ResultsFolder(tmp_path), SERIES, SETTINGS).open(rank) as journal:
            for index in indices:
                journal.append(rows(index), latent(index), kept)
    path = tmp_path / "journal" / f"kept-{SERIES[1].name}-rank-0.bin"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - lost])
    journal = Journal(ResultsFolder(tmp_path), SERIES, SETTINGS)
    done = {0, 1, 2} if not lost else {0, 1} if lost < 40 else {1}
    assert journal.done() == done
    with journal.open(0):
        for index in {0, 1, 2} - done:
            journal.append(rows(index), latent(index), kept)
    assert Journal(ResultsFolder(tmp_path), SERIES, SETTINGS).done() == {0, 1, 2}
    assert journal.kept().keys() == {SERIES[1]}
    assert {index: z.tolist() for index, z in journal.kept()[SERIES[1]].items()} == {i: [7.5] * 3 for i in range(3)}
    assert {index: z.tolist() for index, z in journal.latents().items()} == {i: latent(i).tolist() for i in range(3)}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, 0, [0])
    with pytest.raises(ValueError, match=r"differs in split \(there 'test', here 'val'\)"):
        Journal(ResultsFolder(tmp_path), SERIES, {**SETTINGS, "split": "val"})


def test_misuse_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one series"):
        Journal(ResultsFolder(tmp_path), [], SETTINGS)
    with pytest.raises(ValueError, match="at least one series"):
        Journal(ResultsFolder(tmp_path), [SERIES[0], SERIES[0]], SETTINGS)
    journal = Journal(ResultsFolder(tmp_path), SERIES, SETTINGS)
    with pytest.raises(RuntimeError, match="call `open` first"):
        journal.append(rows(0), latent(0))
    journal.open(0)
    with pytest.raises(ValueError, match="one record of each"):
        journal.append(rows(0)[:1], latent(0))
    with pytest.raises(ValueError, match="for one image"):
        journal.append([rows(0)[0], rows(1)[1]], latent(0))
    journal.close()

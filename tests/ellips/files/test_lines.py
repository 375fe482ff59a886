"""Results that are lines on disk at once, of several processes, cut off in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from ellips.files import LineJournal

SETTINGS = {"seed": 0, "radii": (0.5, 1.0)}


def test_results_of_all_processes_are_there_before_the_journal_is_closed(tmp_path: Path) -> None:
    with LineJournal(tmp_path / "j", SETTINGS).open(0) as first, LineJournal(tmp_path / "j", SETTINGS).open(1) as other:
        first.append("a", {"radius": float("inf")})
        other.append("b", [0.1 + 0.2])
        assert LineJournal(tmp_path / "j", SETTINGS).results() == {"a": {"radius": float("inf")}, "b": [0.1 + 0.2]}


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_cut_off_is_not_there_and_is_not_continued(tmp_path: Path, cut: int) -> None:
    with LineJournal(tmp_path, SETTINGS).open(0) as journal:
        journal.append("a", 1)
        journal.append("b", list(range(20)))
    path = tmp_path / "lines-0.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    journal = LineJournal(tmp_path, SETTINGS)
    assert journal.results() == {"a": 1}
    with journal.open(0):
        journal.append("c", 3)
    assert journal.results() == {"a": 1, "c": 3}


def test_other_settings_are_refused_and_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = LineJournal(tmp_path / "j", SETTINGS)
    with pytest.raises(RuntimeError, match="open"):
        journal.append("a", 1)
    with journal.open(0):
        pass
    with pytest.raises(ValueError, match=r"differs in seed \(there 0, here 1\)"):
        LineJournal(tmp_path / "j", {**SETTINGS, "seed": 1})
    journal.delete()
    assert LineJournal(tmp_path / "j", {"seed": 1}).results() == {}

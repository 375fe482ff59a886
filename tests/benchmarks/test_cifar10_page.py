"""The page of results on CIFAR-10: made of its numbers, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import cifar10
from benchmarks._cifar10.reading import better, wins

FOLDER = Path(__file__).parents[2] / "docs" / "results"


def check_page(text: str, folder: Path) -> None:
    for word in ("`exact`", "`deterministic`", "`probabilistic`", "no guarantee", "violations", "Mardia"):
        assert word in text
    figures = re.findall(r"!\[.*?\]\(([\w.]+)\)", text)
    assert len(figures) == 3
    for figure in figures:
        assert (folder / figure).stat().st_size > 1000, figure
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 11
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_page_of_the_docs_says_what_its_numbers_say_and_nothing_else() -> None:
    text = (FOLDER / "cifar10.md").read_text(encoding="utf-8")
    check_page(text, FOLDER)
    assert cifar10.page_of(FOLDER / "cifar10.json", "cifar10") == text


def test_the_reading_says_what_the_numbers_say() -> None:
    assert [better(*pair) for pair in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0))] == ["above", "below", "equal to"]
    ours = {"certified_accuracy": {"0": 50.0, "0.1": 30.0, "0.2": 20.0, "0.3": 1.0}}
    theirs = {"certified_accuracy": {"0": 60.0, "0.1": 20.0, "0.2": 20.0, "0.3": 2.0}}
    assert wins(ours, theirs) == (1, 1, 1)

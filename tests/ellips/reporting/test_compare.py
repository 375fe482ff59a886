import json
from pathlib import Path

import pytest
from rich.console import Console

from ellips.files import ImageRecord, ResultsFolder, write_table
from ellips.reporting.compare import compare, read_entries
from ellips.types import Series

RADII = {"latent": [0.5, 1.0], "input": [0.25, 0.5]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "a"
    rows = [
        ImageRecord(i, 1, 1 if i < 8 else 0, 0.25 * (i % 4 + 1) / scale, 0.1, series, soundness)
        for i in range(10)
        for series, soundness, scale in (
            (Series("latent", "exact"), "exact", 1.0),
            (Series("input", "exact", "jacobian-norm"), "estimated", 2.0),
        )
    ]
    write_table(ResultsFolder(folder).table, rows)
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "cohen.tsv"
    path.write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
        "0\t1\t1\t0.5\t1\t0:00:02.5\n1\t1\t-1\t0.0\t0\t3.5\n2\t1\t0\t0.75\t0\t1.0\n3\t1\t1\t0.25\t1\t1.0\n"
    )
    return path


def test_each_claim_has_a_table_and_a_panel_of_its_own(run: Path, other: Path, tmp_path: Path) -> None:
    entries = [*read_entries(str(run)), *read_entries(f"{other}:probabilistic")]
    console = Console(record=True, width=100)
    result = compare(entries, tmp_path / "out", RADII, console=console)
    text = console.export_text()
    assert [text.count(f"· {name}:") for name in ("exact", "estimated", "probabilistic")] == [1, 1, 1]
    assert "not all the same images" in text
    assert [(e["space"], e["soundness"], e["images"]) for e in result["entries"]] == [
        ("latent", "exact", 10),
        ("input", "estimated", 10),
        ("input", "probabilistic", 4),
    ]
    assert result["entries"][2]["accuracy"] == [0.5, 0.5, 0.25]
    assert [e["seconds_per_image"] for e in result["entries"]] == [0.1, 0.1, 1.75]  # medians
    assert text.count("s / image") == 3
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == result
    figure = (tmp_path / "out" / "compare.svg").read_text()
    assert figure.count("certified accuracy") == 3
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000


def test_an_image_that_comes_twice_is_refused(run: Path) -> None:
    table = ResultsFolder(run).table
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines, lines[7]]))
    with pytest.raises(ValueError, match=r"each image once in every series but these come more often: \[3\]"):
        read_entries(str(run))


def test_two_kinds_of_claim_are_not_drawn_as_one(run: Path, other: Path, tmp_path: Path) -> None:
    mixed = [*read_entries(str(run), ["input-exact-jacobian-norm"]), *read_entries(f"{other}:probabilistic")]
    with pytest.raises(
        ValueError, match="one soundness class but got estimated in input space, probabilistic in input"
    ):
        compare(mixed, tmp_path, RADII, together=True)
    one = [*read_entries(str(run), ["input-exact-jacobian-norm"]), *read_entries(f"{other}:estimated")]
    assert len(compare(one, tmp_path, RADII, together=True, console=Console(quiet=True))["entries"]) == 2


def test_a_file_that_does_not_say_what_it_claims_is_refused(run: Path, other: Path) -> None:
    for argument in (str(other), f"{other}:sure", f"{other}:estimated:outer"):
        with pytest.raises(ValueError, match=r"may claim, as .*cohen\.tsv:SOUNDNESS"):
            read_entries(argument)
    assert read_entries(f"{other}:exact:latent")[0].space == "latent"
    with pytest.raises(ValueError, match=r"series \['latent-best'\]"):
        read_entries(str(run), ["latent-best"])
    with pytest.raises(FileNotFoundError):
        read_entries(str(run.parent))


def test_labels_leave_out_what_all_share(run: Path, other: Path, tmp_path: Path) -> None:
    entries = [*read_entries(str(run)), *read_entries(f"{other}:probabilistic")]
    result = compare(entries, tmp_path, RADII, console=Console(quiet=True))
    assert [e["label"] for e in result["entries"]] == ["runs/a exact", "runs/a exact-jacobian-norm", "cohen.tsv"]

"""Files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from ellips.files import replace_file, replacing


def test_a_file_is_written_and_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    for text in ("één", "two"):
        replace_file(path, text)
        assert path.read_bytes() == text.encode("utf-8")
        assert list(path.parent.iterdir()) == [path]


def test_until_the_end_of_the_block_the_old_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    replace_file(path, "old")
    with replacing(path) as partial:
        assert partial.parent == path.parent
        assert partial.suffix == ".json"
        assert partial != path
        partial.write_text("ne")
        assert path.read_text() == "old"
        partial.write_text("new")
    assert path.read_text() == "new"


def write_half(path: Path, error: BaseException) -> None:
    with replacing(path) as partial:
        partial.write_text("half of the n")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_removes_what_was_begun(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    replace_file(path, "old")
    with pytest.raises(error):
        write_half(path, error())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_before_there_was_a_file_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        write_half(tmp_path / "file.txt", ValueError("stop"))
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_wrote_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    replace_file(path, "old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"

"""Every promise of docs/reliability.md names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", TEXT)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_it_is_there(file: str, name: str) -> None:
    assert (ROOT / file).is_file(), file
    assert not name or f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_every_promise_has_one() -> None:
    rows = [
        line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| what"))
    ]
    promises = [row for row in rows if row.count("|") == 3 and not re.match(r"\| [\d, ]+ \||\| code", row)]
    assert len(promises) > 30
    assert all(".py::" in row for row in promises), [row for row in promises if ".py::" not in row]


def test_it_is_linked() -> None:
    for name in ("README.md", "SECURITY.md"):
        assert "docs/reliability.md" in (ROOT / name).read_text(encoding="utf-8"), name

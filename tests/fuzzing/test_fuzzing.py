"""A little of what `make fuzz` does for longer, and everything that it ever found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing.targets import FINDINGS, TARGETS

KEPT = sorted(path for path in FINDINGS.glob("*/*") if path.is_file())
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=5)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def seeds() -> dict[str, bytes]:
    return {name: target.seed() for name, target in TARGETS.items()}


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_project_writes_is_read(name: str, seeds: dict[str, bytes], tmp_path: Path) -> None:
    assert TARGETS[name].try_on(seeds[name], tmp_path)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_stays_mended(path: Path, tmp_path: Path) -> None:
    TARGETS[path.parent.name].try_on(path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", TARGETS)
@given(changes=CHANGES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_the_bytes_they_are_read_or_refused_by_name(
    name: str, changes: list[tuple[float, int, bytes]], seeds: dict[str, bytes], tmp_path: Path
) -> None:
    content = seeds[name]
    for where, cut, put in changes:
        place = int(where * len(content))
        content = content[:place] + put + content[place + cut :]
    TARGETS[name].try_on(content, tmp_path)


def test_an_error_of_another_kind_would_be_noticed(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        {}[path.read_bytes()]

    with pytest.raises(KeyError):
        TARGETS["tsv"].__class__("a.tsv", broken, lambda path: None).try_on(b"x", tmp_path)

"""Who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIGHTNING_PACKAGES = ("lightning_modules", "datamodules", "callbacks")
OWN = {"ellips", *LIGHTNING_PACKAGES, "benchmarks", "tests", "train", "certify", "train_encoder"}


def _absolute_imports(package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for name in node.names:
                    yield path, name.name.split(".")[0]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield path, node.module.split(".")[0]


def test_the_library_imports_nothing_of_the_project_and_no_lightning() -> None:
    for path, module in _absolute_imports("ellips"):
        assert module not in OWN - {"ellips"}, path
        assert module not in ("lightning", "pytorch_lightning"), path


@pytest.mark.parametrize("package", LIGHTNING_PACKAGES)
def test_lightning_packages_import_only_the_library(package: str) -> None:
    found = list(_absolute_imports(package))
    assert found
    for path, module in found:
        assert module not in OWN - {"ellips"}, path

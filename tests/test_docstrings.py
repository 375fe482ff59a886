"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDERS = ("ellips", "lightning_modules", "datamodules", "callbacks", "commands")
HEADING = re.compile(r"^\s*Examples?:\s*$", flags=re.MULTILINE)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def module_name(path: Path) -> str:
    """The name a file has in a clone and in the wheel alike: ``ellips.callbacks.requeue``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "ellips" else ("ellips", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def with_examples() -> dict[str, str]:
    """The source of every module that has an example, by its name."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    sources = {module_name(path): path.read_text(encoding="utf-8") for path in paths}
    return {name: text for name, text in sources.items() if ">>> " in text or HEADING.search(text)}


MODULES = with_examples()


def test_there_are_examples() -> None:
    assert {"ellips.classifier", "ellips.head", "ellips.pipeline", "ellips.encoders.frozen"} <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = import_module(name)
    # What an example may use without importing it: torch, and the names of its own module.
    examples = doctest.DocTestFinder().find(module, name, extraglobs={"torch": torch})
    examples = [example for example in examples if example.examples]
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for example in examples:
        torch.manual_seed(0)
        printed: list[str] = []
        runner.run(example, out=printed.append)
        assert runner.failures == 0, "".join(printed)
    # An example that is not reached, or that is not in the form of a session, must not pass for one that ran.
    assert len(examples) >= len(HEADING.findall(MODULES[name])) > 0
    assert runner.tries == MODULES[name].count(">>> ")

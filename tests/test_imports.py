"""Who may import whom: rooms point down only, and there is no circle, not even a hidden one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ellips

ROOT = Path(__file__).parents[1]
SHELLS = ("lightning_modules", "datamodules", "callbacks", "commands")
# From the bottom up; what stands in one line does not import each other, nor anything above it.
ROOMS = (
    ("errors", "validation", "versions", "_clone", "_imports"),
    ("types", "precision", "distributed", "settings", "splits", "progress", "randomness", "checkpoints"),
    ("memory",),
    ("chunks",),
    ("metrics",),
    ("gaussians", "smoothing"),
    ("certificates",),
    ("classifier",),
    ("regularization_search", "losses", "projector"),
    ("vote_search", "automatic_regularization", "head"),
    ("lipschitz",),
    ("encoders",),
    ("input_certifiers",),
    ("files",),
    ("pipeline",),
    ("reporting", "audit", "theory", "pretrained"),
    ("planning",),
)
OWN_FOLDERS = ("ellips", *SHELLS)


def module_name(path: Path) -> str:
    """The name under which a file is imported everywhere: ``ellips.callbacks.requeue``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "ellips" else ("ellips", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for folder in OWN_FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))}


def imported(name: str, path: Path) -> Iterator[str]:
    """Every module of the project that a file imports, at its top, inside functions or for the type checker alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, attribute in found:
            first = base.split(".")[0]
            full = f"ellips.{base}" if first in SHELLS else base
            if f"{full}.{attribute}" in FILES:
                yield f"{full}.{attribute}"
            elif full in FILES:
                yield full
            else:
                assert first not in ("ellips", "train", "certify", "train_encoder", "tests", "benchmarks"), (path, base)


GRAPH = {name: set(imported(name, path)) - {name} for name, path in FILES.items()}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_there_is_no_circle_of_imports() -> None:
    try:
        order = list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) > 100


def test_the_cycle_test_sees_hidden_imports(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ellips.head import EllipsHead\n"
        "def f():\n    import ellips.losses\n    from callbacks import requeue\n"
    )
    assert list(imported("ellips.x", path)) == ["ellips.head", "ellips.losses", "ellips.callbacks.requeue"]


def test_rooms_of_the_library_import_downwards_only() -> None:
    level = {name: i for i, rooms in enumerate(ROOMS) for name in rooms}
    library = {name for name in GRAPH if room(name) not in ("", *SHELLS)}
    assert {room(name) for name in library} <= level.keys(), "a room without a place"
    for name in library:
        for target in GRAPH[name]:
            if room(target) not in ("", room(name)):
                assert room(target) not in SHELLS, (name, target)
                assert level[room(target)] < level[room(name)], (name, target)


def test_the_library_does_without_lightning() -> None:
    for name, path in FILES.items():
        if room(name) not in SHELLS:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(n.split(".")[0] in ("lightning", "pytorch_lightning") for n in names), path


@pytest.mark.parametrize("shell", SHELLS[:-1])
def test_shells_meet_in_the_commands_only(shell: str) -> None:
    for name, targets in GRAPH.items():
        if room(name) == shell:
            assert not {room(target) for target in targets} & (set(SHELLS) - {shell}), name


def test_the_trusted_kernel_knows_nothing_of_the_solvers() -> None:
    trusted = {f"ellips.certificates.{name}" for name in ("verify", "bounds", "ties", "verify_low_rank")}
    known = {target for name in trusted for target in GRAPH[name]} - trusted
    assert known <= {"ellips.gaussians", "ellips.types", "ellips.validation"}
    assert GRAPH["ellips.certificates.verify"] <= {"ellips.gaussians", "ellips.types"}
    assert len(FILES["ellips.certificates.verify"].read_text(encoding="utf-8").splitlines()) <= 150


def test_no_source_file_is_too_long_to_read() -> None:
    top = [ROOT / name for name in ("train.py", "certify.py", "train_encoder.py")]
    for path in [*FILES.values(), *top, *(ROOT / "benchmarks").glob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path
    for path in top:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines) <= 60, path


def test_what_is_imported_when_asked_for_is_asked_for_once() -> None:
    # Parsers look names up hundreds of times a command; each time it would cost what an import does.
    assert ellips.FrozenEncoder is vars(ellips)["FrozenEncoder"]

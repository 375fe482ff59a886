"""In a clone ``callbacks`` and ``ellips.callbacks`` have the same classes; another project's ``callbacks`` is its own.

Every case is a process of its own in which nothing of this project was imported before: forks of one process that has
imported what takes long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ellips._clone import PACKAGES

ROOT = Path(__file__).parents[1]
# Of each package a module in it, and a class that the package offers.
MEMBERS = {
    "callbacks": ("certification", "CertificationCallback"),
    "commands": ("training", "EllipsCLI"),
    "datamodules": ("digits", "DigitsDataModule"),
    "lightning_modules": ("gen_ellips", "GenEllips"),
}
RUNNER = """
import json, os, sys, traceback
import lightning.pytorch.loggers, matplotlib.pyplot, rich.console, scipy.stats, sklearn, timm, torchmetrics, torchvision
assert not {name.partition(".")[0] for name in sys.modules} & {"ellips", "callbacks", "lightning_modules"}
for case, (path, code) in json.load(sys.stdin).items():
    child = os.fork()
    if child == 0:
        sys.path[:0] = path
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(json.dumps([case, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]), flush=True)
"""
SAME = """
import importlib, pickle
importlib.import_module({first!r})
package, module, kind = {member!r}
modules = [importlib.import_module(name + "." + module) for name in (package, "ellips." + package)]
assert modules[0] is modules[1], modules
assert modules[0].__spec__.name == modules[0].__name__ == "ellips." + package + "." + module, modules[0].__spec__
found = [getattr(module, kind) for module in modules]
if package != "commands":  # whose face is `main` alone
    found += [getattr(importlib.import_module(name), kind) for name in (package, "ellips." + package)]
assert len(set(found)) == 1, found
assert pickle.loads(pickle.dumps(found[0])) is found[0]
"""
OWN = """
{first}
import callbacks, ellips.callbacks
assert callbacks.WHOSE == "another's", callbacks
assert not hasattr(callbacks, "CertificationCallback")
from callbacks.mine import Mine
assert Mine.__module__ == "callbacks.mine"
assert ellips.callbacks.CertificationCallback.__module__ == "ellips.callbacks.certification"
import lightning_modules, ellips.lightning_modules  # the project has no folder of this name
assert lightning_modules.GenEllips is ellips.lightning_modules.GenEllips
assert __import__("sys").modules["callbacks"] is callbacks
"""
FIRST = {
    f"{name} first": SAME.format(first=name, member=(package, *MEMBERS[package]))
    for name in (*PACKAGES, *(f"ellips.{package}" for package in PACKAGES), "callbacks.certification")
    for package in PACKAGES
    if package in name.split(".")
}
OTHERS = {
    f"after {first or 'nothing'}": OWN.format(first=first)
    for first in ("", "import ellips", "import ellips.callbacks", "import lightning_modules")
}
PLAIN = "a folder without __init__.py"


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The exit code of each case."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("own", "plain"):
        (folder / name / "callbacks").mkdir(parents=True)
        (folder / name / "callbacks" / "mine.py").write_text("class Mine: ...\n")
    (folder / "own" / "callbacks" / "__init__.py").write_text('WHOSE = "another\'s"\n')
    cases = {name: ([str(ROOT)], code) for name, code in FIRST.items()}
    cases |= {name: ([str(folder / "own"), str(ROOT)], code) for name, code in OTHERS.items()}
    # Python itself prefers a package with __init__.py, wherever it is, so the clone is left out of the path.
    plain = "import ellips.callbacks, sys; sys.path = [p for p in sys.path if p != {!r}]; import callbacks.mine"
    cases[PLAIN] = ([str(folder / "plain"), str(ROOT)], plain.format(str(ROOT)))
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, cwd=folder, input=json.dumps(cases), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr[-20000:])  # shown where a test fails
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_every_package_is_looked_at_here() -> None:
    assert set(MEMBERS) == set(PACKAGES)


@pytest.mark.parametrize("case", FIRST)
def test_both_names_give_the_same_classes_whichever_is_imported(codes: dict[str, int], case: str) -> None:
    assert codes[case] == 0


@pytest.mark.parametrize("case", [*OTHERS, PLAIN])
def test_another_projects_folder_of_the_name_is_left_alone(codes: dict[str, int], case: str) -> None:
    assert codes[case] == 0

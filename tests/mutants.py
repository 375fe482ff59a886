"""Mutation testing: what a module's tests do not notice when one of its operators, numbers or words is another.

``python -m tests.mutants [MODULE ...]`` judges every mutant of the modules in `tests/mutants.toml` by the tests that it
names. torch is imported once; a forked child then serves each mutant's source to the one module that is mutated, so
that no file is changed. It fails where a mutant survives that the table does not accept, with a reason.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import math
import os
import re
import resource
import select
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from tests.mutating import mutants

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests" / "mutants.toml"
# Imported before the children are forked. None of the project, which would be there before the mutant is.
LIBRARIES = "torch torch.export torch._dynamo lightning torchmetrics torchvision timm scipy.stats scipy.optimize flint \
hypothesis sklearn.discriminant_analysis matplotlib.pyplot jsonargparse".split()
QUIET = """-q -x --tb=no --noconftest -p no:cacheprovider -p no:warnings -p no:unraisableexception
-p no:threadexception""".split()
NOT_LOADED = 9
_PATIENCE = 20


class _Mutated(importlib.machinery.SourceFileLoader):
    source = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


class _Server:
    """Finds one module, with another source than its file's."""

    asked = False

    def __init__(self, file: str, source: str) -> None:
        self.name, self.file, self.source = file.removesuffix(".py").replace("/", "."), file, source

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        loader = _Mutated(name, str(ROOT / self.file))
        loader.source = self.source
        return importlib.util.spec_from_file_location(name, loader.path, loader=loader)


class _Judge:
    """Runs the likeliest tests first, writes into a pipe how each ends, and stops at the first failure."""

    def __init__(self, pipe: int, order: Mapping[str, float], too_slow: set[str]) -> None:
        self.pipe, self.order, self.too_slow, self.used = pipe, order, too_slow, time.process_time()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.too_slow]
        items.sort(key=lambda item: -self.order.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before, self.used = self.used, time.process_time()  # of the processor: others may be at work, too
        line = {"test": report.nodeid, "seconds": self.used - before, "failed": report.failed}
        os.write(self.pipe, (json.dumps(line) + "\n").encode())
        if report.failed:
            os._exit(1)


@dataclass
class Verdict:
    """How a run of the tests ended: the exit status, negative where it was killed, with the reports of the tests."""

    status: int
    reports: list[dict[str, Any]]


def run(file: str, source: str, tests: Sequence[str], limit: float, judge: Callable[[int], object]) -> Verdict:
    """Run tests in a child that gets another source of one module, and so many seconds of the processor."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(reading)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        server = _Server(file, source)
        sys.meta_path.insert(0, server)  # type: ignore[arg-type]
        status = int(pytest.main([*QUIET, *tests], plugins=[judge(writing)]))
        os._exit(status or (0 if server.name in sys.modules else NOT_LOADED))
    os.close(writing)
    text, end = b"", time.monotonic() + _PATIENCE * limit  # for one that waits and does nothing
    while more := _read(reading, end - time.monotonic()):
        text += more
    if more is None:
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reading)
    return Verdict(status, [json.loads(line) for line in text.decode().splitlines()])


def _read(pipe: int, seconds: float) -> bytes | None:
    """What is in a pipe; nothing at its end, None where nothing comes in time."""
    return os.read(pipe, 1 << 16) if seconds > 0 and select.select([pipe], [], [], seconds)[0] else None


class Module:
    """A module, its tests, and which of them are likely to notice a mutant soon."""

    def __init__(self, file: str, tests: Sequence[str], too_slow: float) -> None:
        self.file, self.tests, self.source = file, tests, (ROOT / file).read_text()
        self.digest = _digest(str(too_slow), *(path.read_text() for test in tests for path in _files(test)))
        self.too_slow, self.limit = too_slow, 600.0
        self.seconds: dict[str, float] = {}
        self.caught = Counter[str]()

    def prepare(self) -> None:
        """Run the tests on the module as it is.

        Raises:
            RuntimeError: If they fail, or do not load the module.
        """
        verdict = run(self.file, self.source, self.tests, self.limit, lambda pipe: _Judge(pipe, {}, set()))
        failed = [report["test"] for report in verdict.reports if report["failed"]]
        if verdict.status:
            raise RuntimeError(f"Expected the tests of {self.file} to pass but got {verdict.status}: {failed}.")
        for report in verdict.reports:
            self.seconds[report["test"]] = self.seconds.get(report["test"], 0.0) + report["seconds"]
        slow = {test for test, seconds in self.seconds.items() if seconds > self.too_slow}
        self.seconds = {test: seconds for test, seconds in self.seconds.items() if test not in slow}
        self.left_out, self.limit = slow, 20 + 4 * sum(self.seconds.values())

    def judge(self, mutant: str) -> dict[str, Any]:
        """Return whether a mutant survives, or which test notices it."""
        order = {test: (1 + 20 * self.caught[test]) / (0.02 + seconds) for test, seconds in self.seconds.items()}
        start = time.monotonic()
        verdict = run(self.file, mutant, self.tests, self.limit, lambda pipe: _Judge(pipe, order, self.left_out))
        by = next((report["test"] for report in verdict.reports if report["failed"]), f"exit {verdict.status}")
        if verdict.status == 0:
            by = None
        else:
            self.caught[by] += 1
        return {"survived": by is None, "by": by, "seconds": round(time.monotonic() - start, 2)}


# ------------------------------------------------------------------ all of them


def _files(test: str) -> list[Path]:
    path = ROOT / test.partition("::")[0]
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _import_libraries() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    import hypothesis
    import torch

    torch.set_num_threads(1)
    phases = [phase for phase in hypothesis.Phase if phase not in (hypothesis.Phase.shrink, hypothesis.Phase.explain)]
    hypothesis.settings.register_profile("mutants", database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    gc.collect()
    gc.freeze()


def judge_all(files: Sequence[str], table: Mapping[str, Any], given: argparse.Namespace) -> dict[str, list[str]]:
    """Judge the mutants of modules, and return the names of those that survive, by module."""
    known: dict[tuple[str, str, str | None], dict[str, Any]] = {}
    for line in given.results.read_text().splitlines() if given.results.exists() else ():
        old = json.loads(line)
        known[old["file"], old["digest"], old["tests"] if old["survived"] else None] = old
    survived = {(file, digest) for file, digest, tests in known if tests}
    alive: dict[str, list[str]] = {}
    for file in files:
        module = Module(file, table["tests"][file], given.slowest)
        found = {
            name: mutant for name, mutant in mutants(module.source).items() if not re.search(table["skipped"], name)
        }
        found = dict(list(found.items())[:: given.every])
        keys = {name: (file, _digest(mutant)) for name, mutant in found.items()}
        todo = [name for name, key in keys.items() if (*key, None) not in known and (*key, module.digest) not in known]
        todo.sort(key=lambda name: (file, keys[name][1]) in survived)  # those that survived other tests come last
        if todo:
            module.prepare()
        for count, name in enumerate(todo, 1):
            verdict = module.judge(found[name])
            record = {"file": file, "mutant": name, "digest": keys[name][1], "tests": module.digest, **verdict}
            with given.results.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            known[(*keys[name], module.digest if record["survived"] else None)] = record
            if record["survived"]:
                print(f"{file} {count}/{len(todo)} SURVIVED {name}", flush=True)
        alive[file] = [name for name, key in keys.items() if (*key, None) not in known]
        print(f"{file}: {len(found)} mutants, {len(found) - len(alive[file])} noticed", flush=True)
    return alive


def main() -> int:
    """Judge, compare with the table, and say what survives that it does not accept."""
    table = tomllib.loads(TABLE.read_text())
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(table["tests"]), help="default: all of the table")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutants.jsonl", help="judged ones are skipped")
    parser.add_argument("--slowest", type=float, default=6.0, help="seconds; slower tests are left out")
    parser.add_argument("--every", type=int, default=1, help="judge a sample: one mutant in so many")
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    _import_libraries()
    alive = judge_all(given.modules, table, given)
    accepted = {(entry["module"], name) for entry in table.get("accepted", ()) for name in entry["mutants"]}
    left = [(file, name) for file, names in alive.items() for name in names if (file, name) not in accepted]
    gone = [(f, name) for f, name in sorted(accepted) if given.every == 1 and f in alive and name not in alive[f]]
    for what, which in (("Accepted, but noticed or not there", gone), ("Survived", left)):
        for file, name in which:
            print(f"{what}: {file}: {name}")
    return 1 if left or gone else 0


if __name__ == "__main__":
    sys.exit(main())

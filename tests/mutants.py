"""Mutation testing: what a module's tests do not notice when one of its operators, numbers or words is another.

``python -m tests.mutants [MODULE ...]`` judges every mutant of the modules in `tests/mutants.toml` by the tests that it
names. torch is imported once; a forked child then serves each mutant's source to the one module that is mutated, so
that no file is changed. It fails where a mutant survives that the table does not accept, with a reason. ``--table``
prints, of what was judged, how many mutants each module has, and what became of them.
"""

from __future__ import annotations

import argparse
import compileall
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
from collections.abc import Callable, Iterable, Mapping, Sequence
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
QUIET = """-q -x --tb=no --assert=plain --noconftest -p no:cacheprovider -p no:warnings -p no:unraisableexception
-p no:threadexception""".split()
NOT_LOADED = 9
_PATIENCE = 20
_GRACE, _LONGER = 10, 5  # seconds of the processor, and times what a test takes otherwise: more counts as noticed
KINDS = {
    "spare": "a bound with more to spare",
    "safe": "in the harmless direction",
    "same": "no difference to any result",
    "proven": "a proposal, proven or lowered by the kernel",
}


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
    """Runs the likeliest tests first, writes into a pipe how each ends, and stops at the first failure.

    Each test has so many seconds of the processor; those without a limit have the run's.
    """

    def __init__(self, pipe: int, order: Mapping[str, float], too_slow: set[str], limits: Mapping[str, float]) -> None:
        self.pipe, self.order, self.too_slow, self.used = pipe, order, too_slow, time.process_time()
        self.limits = limits

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "filterwarnings: of the plugin that is left out")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if nodeid in self.limits:
            most = resource.getrlimit(resource.RLIMIT_CPU)[1]
            end = min(math.ceil(time.process_time() + self.limits[nodeid]), most)
            resource.setrlimit(resource.RLIMIT_CPU, (end, most))

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
    """How a run of the tests ended.

    Attributes:
        status: The exit status, negative where it was killed.
        reports: Of the tests.
        seconds: Of the processor.
    """

    status: int
    reports: list[dict[str, Any]]
    seconds: float


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
    _, status, used = os.wait4(child, 0)
    os.close(reading)
    reports = [json.loads(line) for line in text.decode().splitlines()]
    return Verdict(os.waitstatus_to_exitcode(status), reports, used.ru_utime + used.ru_stime)


def _read(pipe: int, seconds: float) -> bytes | None:
    """What is in a pipe; nothing at its end, None where nothing comes in time."""
    return os.read(pipe, 1 << 16) if seconds > 0 and select.select([pipe], [], [], seconds)[0] else None


class Module:
    """A module, its tests, and which of them are likely to notice a mutant soon.

    Args:
        file: The module.
        tests: Files, folders or single tests.
        too_slow: Seconds; slower tests are left out.
        caught: Which tests have noticed mutants of the module before, and how many.
    """

    def __init__(self, file: str, tests: Sequence[str], too_slow: float, caught: Counter[str] | None = None) -> None:
        self.file, self.source = file, (ROOT / file).read_text()
        texts = {test: [path.read_text() for path in _files(test)] for test in tests}
        self.tests = {_digest(str(too_slow), test, *texts[test]): test for test in tests}
        self.too_slow, self.limit = too_slow, 600.0
        self.seconds: dict[str, float] = {}
        self.caught = Counter[str]() if caught is None else caught

    def prepare(self, digests: set[str]) -> None:
        """Run tests on the module as it is.

        Raises:
            RuntimeError: If they fail, or do not load the module.
        """
        tests = [test for digest, test in self.tests.items() if digest in digests]
        verdict = run(self.file, self.source, tests, self.limit, lambda pipe: _Judge(pipe, {}, set(), {}))
        failed = [report["test"] for report in verdict.reports if report["failed"]]
        if verdict.status:
            raise RuntimeError(f"Expected the tests of {self.file} to pass but got {verdict.status}: {failed}.")
        for report in verdict.reports:
            self.seconds[report["test"]] = self.seconds.get(report["test"], 0.0) + report["seconds"]
        self.take(self.seconds)

    def take(self, seconds: Mapping[str, float]) -> None:
        """Take over how long the tests take."""
        self.left_out = {test for test, of in seconds.items() if of > self.too_slow}
        self.seconds = {test: of for test, of in seconds.items() if test not in self.left_out}
        self.limit = 20 + 4 * sum(self.seconds.values())

    def judge(self, mutant: str, digests: set[str], first: str | None = None) -> dict[str, Any]:
        """Return whether a mutant survives some of the tests, or which one notices it."""
        order = {test: (1 + 20 * self.caught[test]) / (0.02 + seconds) for test, seconds in self.seconds.items()}
        order[first or ""] = math.inf
        limits = {test: _GRACE + _LONGER * seconds for test, seconds in self.seconds.items()}
        tests = [test for digest, test in self.tests.items() if digest in digests]
        verdict = run(self.file, mutant, tests, self.limit, lambda pipe: _Judge(pipe, order, self.left_out, limits))
        by = next((report["test"] for report in verdict.reports if report["failed"]), f"exit {verdict.status}")
        survived = verdict.status == 0
        return {"survived": survived, "by": None if survived else by, "seconds": round(verdict.seconds, 2)}


class Results:
    """What was judged: kept by the mutant's whole source, and, if it survived, by the tests that it survived."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.noticed: set[tuple[str, str]] = set()
        self.survived: dict[tuple[str, str], set[str]] = {}
        self.by: dict[tuple[str, str], str] = {}  # of a mutant by name: what is around it may have changed
        self.caught: dict[str, Counter[str]] = {}
        self.passed: dict[tuple[str, str], dict[str, float]] = {}  # how long tests took that modules pass
        for line in path.read_text().splitlines() if path.exists() else ():
            self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        file, key = record["file"], (record["file"], record["digest"])
        if "passed" in record:
            self.passed[file, record["tests"] + record["digest"]] = record["passed"]
        elif record["survived"]:
            self.survived.setdefault(key, set()).update(record["tests"].split())
        else:
            self.noticed.add(key)
            self.by[file, record["mutant"]] = record["by"]
            self.caught.setdefault(file, Counter())[record["by"]] += 1

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record."""
        with self.path.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        self._take(record)

    def left(self, key: tuple[str, str], tests: Iterable[str]) -> set[str]:
        """Return the tests that a mutant has not survived yet; none if one has noticed it."""
        return set() if key in self.noticed else set(tests) - self.survived.get(key, set())


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
    for folder in ("ellips", "tests"):  # once, where each child would do it anew
        compileall.compile_dir(ROOT / folder, quiet=1)
    import hypothesis
    import torch

    torch.set_num_threads(1)
    phases = [phase for phase in hypothesis.Phase if phase not in (hypothesis.Phase.shrink, hypothesis.Phase.explain)]
    hypothesis.settings.register_profile("mutants", database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    gc.collect()
    gc.freeze()


def find_mutants(module: Module, skipped: str, every: int = 1) -> dict[str, tuple[str, tuple[str, str]]]:
    """Return the source and the key in the results of each mutant, by name."""
    found = {name: mutant for name, mutant in mutants(module.source).items() if not re.search(skipped, name)}
    return {name: (found[name], (module.file, _digest(found[name]))) for name in list(found)[::every]}


def judge_all(files: Sequence[str], table: Mapping[str, Any], given: argparse.Namespace) -> dict[str, list[str]]:
    """Judge the mutants of modules, and return the names of those that survive, by module."""
    results = Results(given.results)
    alive: dict[str, list[str]] = {}
    for file in files:
        module = Module(file, table["tests"][file], given.slowest, results.caught.setdefault(file, Counter()))
        found = find_mutants(module, table["skipped"], given.every)
        left = {name: results.left(key, module.tests) for name, (_, key) in found.items()}
        todo = [name for name in found if left[name] and re.search(given.only, name)]
        todo.sort(key=lambda name: found[name][1] in results.survived)  # those that survived other tests come last
        if todo:
            tests = " ".join(sorted(set().union(*(left[name] for name in todo))))
            source = _digest(module.source)
            if (file, tests + source) in results.passed:
                module.take(results.passed[file, tests + source])
            else:
                module.prepare(set(tests.split()))
                seconds = {**module.seconds, **dict.fromkeys(module.left_out, math.inf)}
                results.add({"file": file, "digest": source, "tests": tests, "passed": seconds})
        for count, name in enumerate(todo, 1):
            mutant, key = found[name]
            verdict = module.judge(mutant, left[name], results.by.get((file, name)))
            tests = " ".join(sorted(left[name]))
            results.add({"file": file, "mutant": name, "digest": key[1], "tests": tests, **verdict})
            if verdict["survived"]:
                print(f"{file} {count}/{len(todo)} SURVIVED {name}", flush=True)
        noticed = {name for name, (_, key) in found.items() if key in results.noticed}
        alive[file] = [n for n, (_, key) in found.items() if n not in noticed and not results.left(key, module.tests)]
        unknown = len(found) - len(noticed) - len(alive[file])
        print(f"{file}: {len(found)} mutants, {len(noticed)} noticed, {unknown} not judged", flush=True)
    return alive


def print_table(files: Sequence[str], table: Mapping[str, Any], given: argparse.Namespace) -> None:
    """Print, of what was judged, how many mutants each module has, and what became of them."""
    results = Results(given.results)
    columns = ["mutants", "noticed", *KINDS, "survive", "not judged"]
    print(f"| {' | '.join(['module', *columns])} |\n|---|{'---|' * len(columns)}")
    whole = Counter[str]()
    for file in files:
        module = Module(file, table["tests"][file], given.slowest)
        kinds = {n: entry["kind"] for entry in table["accepted"] if entry["module"] == file for n in entry["mutants"]}
        row = Counter[str]()
        for name, (_, key) in find_mutants(module, table["skipped"]).items():
            left = results.left(key, module.tests)
            noticed = key in results.noticed
            row["noticed" if noticed else "not judged" if left else kinds.get(name, "survive")] += 1
        row["mutants"] = sum(row.values())
        whole += row
        print(f"| {' | '.join([f'`{file}`', *(str(row[column]) for column in columns)])} |", flush=True)
    print(f"| {' | '.join(['all', *(str(whole[column]) for column in columns)])} |\n")
    print("\n".join(f"- {kind}: {what}" for kind, what in KINDS.items()))


def main() -> int:
    """Judge, compare with the table, and say what survives that it does not accept."""
    table = tomllib.loads(TABLE.read_text())
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(table["tests"]), help="default: all of the table")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutants.jsonl", help="judged ones are skipped")
    parser.add_argument("--slowest", type=float, default=6.0, help="seconds; slower tests are left out")
    parser.add_argument("--every", type=int, default=1, help="judge a sample: one mutant in so many")
    parser.add_argument("--only", default="", help="judge those whose name matches this regular expression, no others")
    parser.add_argument("--table", action="store_true", help="judge nothing: print what was judged")
    given = parser.parse_args()
    if given.table:
        print_table(given.modules, table, given)
        return 0
    given.results.parent.mkdir(parents=True, exist_ok=True)
    _import_libraries()
    alive = judge_all(given.modules, table, given)
    accepted = {(entry["module"], name) for entry in table.get("accepted", ()) for name in entry["mutants"]}
    left = [(file, name) for file, names in alive.items() for name in names if (file, name) not in accepted]
    gone = [
        (f, name)
        for f, name in sorted(accepted)
        if given.every == 1 and not given.only and f in alive and name not in alive[f]
    ]
    for what, which in (("Accepted, but noticed or not there", gone), ("Survived", left)):
        for file, name in which:
            print(f"{what}: {file}: {name}")
    return 1 if left or gone else 0


if __name__ == "__main__":
    sys.exit(main())

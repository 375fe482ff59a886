"""Fuzzing with atheris: ``python -m tests.fuzzing --seconds 600 [TARGET ...]``.

Each target runs in a process of its own for so long, from what earlier runs have collected in ``runs/fuzzing/TARGET``.
What ends it early, an error of another kind than a refusal, is written to ``tests/fuzzing/findings/TARGET``, where a
test takes it up; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path("runs/fuzzing")
INSTRUMENTED = ["ellips.files", "datamodules.manifest", "ellips.reporting.sweep", "yaml", "csv", "json"]


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends here."""
    import atheris  # not needed by those who only ask for help

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzzing.targets import FINDINGS, TARGETS

    target = TARGETS[name]
    corpus, found = CORPUS / name, FINDINGS / name
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes(target.seed())
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [f"-max_total_time={seconds}", f"-artifact_prefix={found}/", "-timeout=30", "-rss_limit_mb=4096"]
        atheris.Setup(
            [sys.argv[0], *arguments, "-print_final_stats=1", "-verbosity=0", str(corpus)],
            lambda content: target.try_on(content, Path(scratch)) and None,
        )
        atheris.Fuzz()


def main() -> int:
    """Fuzz the targets one after the other; return 1 if something was found."""
    from tests.fuzzing.targets import TARGETS

    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"which; none: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    given = parser.parse_args()
    if unknown := set(given.targets) - TARGETS.keys():
        parser.error(f"expected targets among {list(TARGETS)} but got {sorted(unknown)}")
    failed = []
    for name in given.targets or TARGETS:
        start = f"from tests.fuzzing.__main__ import fuzz; fuzz({name!r}, {given.seconds})"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", start], stderr=subprocess.PIPE, text=True)
        runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        outcome = "nothing found" if done.returncode == 0 else f"FOUND something:\n{done.stderr[-3000:]}"
        print(f"{name}: {runs[0] if runs else '?'} inputs, {outcome}", flush=True)
        failed += [name] * (done.returncode != 0)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

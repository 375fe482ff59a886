"""Readers of files that others may have written: whatever bytes they get, they read them or refuse them by name."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.manifest import MANIFEST, Plan, check_entries, check_manifest, read_manifest, shard_name
from ellips import Ellips
from ellips.files import (
    ImageRecord,
    LineJournal,
    RunFolder,
    load_certificates,
    read_configuration,
    read_json,
    read_table,
    read_tsv,
    save_certificates,
    write_tsv,
)
from ellips.files.latents import latent_entries, write_latent
from ellips.files.table import write_table
from ellips.reporting.sweep import read_run
from ellips.types import Series

FINDINGS = Path(__file__).parent / "findings"
"""What was found once, by target; kept, so that it stays mended."""

PLAN = Plan(identity={"data": {"name": "x"}}, rows=5, feature_dim=2, shard_rows=3)
RECORDS = [
    ImageRecord(0, 1, 1, 0.74, 0.1, Series("latent", "exact"), margin=0.5, rival=0, diagnostics={"p": 0.5}),
    ImageRecord(1, 1, -1, 0.0, 0.1, Series("input", "exact", "known-constant"), latent_radius=1.0, lipschitz=2.0),
]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: The file's name; what it is refused with must say it.
        read: Reads the file, which lies alone in its folder.
        write: Writes a file as the project does, to start from.
    """

    name: str
    read: Callable[[Path], Any]
    write: Callable[[Path], Any]

    def seed(self) -> bytes:
        """Return a whole file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, self.name)
            self.write(path)
            return path.read_bytes()

    def try_on(self, content: bytes, folder: Path) -> bool:
        """Read some bytes; return whether they were taken.

        Raises:
            AssertionError: If they are refused without a word on which file it is.
            Exception: Whatever else the reader raises: that is a finding.
        """
        path = folder / self.name
        path.write_bytes(content)
        try:
            self.read(path)
        except ValueError as error:
            if self.name not in str(error):
                raise AssertionError(f"{self.name} is not named") from error
            return False
        return True


def _certificates(path: Path) -> None:
    z = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ellips = Ellips(2, 2, shrinkage=0.5).fit(z, torch.arange(12) % 2)
    save_certificates(path, ellips.certify(z[:3]), z[:3], ellips, torch.arange(3))


def _lines(path: Path) -> None:
    journal = LineJournal(path.parent, {"seed": 0})
    with journal.open(0):
        journal.append("latent-exact/0", [{"radius": 0.74, "violated_by": None}])
    (path.parent / "settings.json").unlink()


def _latents(path: Path) -> None:
    with path.open("wb") as file:
        for index in range(3):
            write_latent(file, index, torch.full((2,), index + 0.5, dtype=torch.float64), None)


def _manifest(path: Path) -> None:
    shards = [{"file": shard_name(i), "rows": rows, "sha256": 64 * "a"} for i, rows in enumerate((3, 2))]
    path.write_text(json.dumps({**PLAN.content(), "complete": True, "skipped": [], "shards": shards}))


def _read_manifest(path: Path) -> None:
    check_manifest(path.parent, PLAN)
    check_entries(path.parent, read_manifest(path.parent), PLAN)


def _read_summary(path: Path) -> None:
    run = RunFolder(path.parent)
    folder = run.results("test")
    run.config.write_text("name: x\n")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.summary.write_bytes(path.read_bytes())
    read_run(run)


def _summary(path: Path) -> None:
    entry: dict[str, Any] = {"soundness": "exact", "clean_accuracy": {"accuracy": 0.9}}
    entry |= {"certified_accuracy": [{"radius": 0.5, "accuracy": 0.7}]}
    path.write_text(json.dumps({"complete": True, "series": {"latent-exact": entry}}))


YAML = "data: &d\n  class_path: ellips.datamodules.DigitsDataModule\n  init_args: {batch_size: 3}\nother: *d\n"
TARGETS = {
    "tsv": Target("a.tsv", read_tsv, lambda path: write_tsv(path, RECORDS)),
    "table": Target("certificates.csv", read_table, lambda path: write_table(path, RECORDS)),
    "rows": Target("rows-0.csv", lambda path: read_table(path, allow_partial=True), lambda p: write_table(p, RECORDS)),
    "latents": Target("latents-0.bin", lambda path: latent_entries(path, None), _latents),
    "lines": Target("lines-0.jsonl", lambda path: LineJournal(path.parent, {"seed": 0}).results(), _lines),
    "settings": Target("settings.json", read_json, lambda path: path.write_text('{"seed": 0, "checksums": true}')),
    "manifest": Target(MANIFEST, _read_manifest, _manifest),
    "summary": Target("summary.json", _read_summary, _summary),
    "certificates": Target("latent-exact.safetensors", load_certificates, _certificates),
    "yaml": Target("config.yaml", read_configuration, lambda path: path.write_text(YAML)),
}

"""The folders that runs leave behind, and what lies where in them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ellips.types import SOUNDNESS_ORDER, SPACES, Series, Soundness, Space

RUNS = Path("runs")
"""Where run folders are made, relative to the folder that a command is started in."""


_WRITTEN = (
    *("config.yaml", "certificates.csv", "summary.json", "report.html", "audit.json", "audit.csv"),
    *(f"{space}-*.{suffix}" for space in SPACES for suffix in ("tsv", "safetensors")),
    *(
        f"{what}_{space}_{soundness}.*"
        for what in ("curve", "radii")
        for space in SPACES
        for soundness in SOUNDNESS_ORDER
    ),
    *("latents.svg", "spectra.svg"),
)
_JOURNALLED = ("rows-*.csv", "latents-*.bin", "kept-*-rank-*.bin", ".lock-*")


@dataclass(frozen=True)
class ResultsFolder:
    """What a certification run wrote.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration that the run was started with."""
        return self.path / "config.yaml"

    @property
    def journal(self) -> Path:
        """Rows and latents as they came, which a killed run goes on from."""
        return self.path / "journal"

    @property
    def settings(self) -> Path:
        """Everything that the rows depend on."""
        return self.journal / "settings.json"

    @property
    def table(self) -> Path:
        """The full-precision table of all series."""
        return self.path / "certificates.csv"

    @property
    def summary(self) -> Path:
        """Accuracies, times, versions, digests."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def audit(self) -> tuple[Path, Path]:
        """What an audit found: per series (JSON) and per image (CSV)."""
        return self.path / "audit.json", self.path / "audit.csv"

    @property
    def audit_journal(self) -> Path:
        """What an audit that is not finished has found so far."""
        return self.path / "audit-journal"

    def remove(self) -> None:
        """Remove what certification and audit wrote here, and nothing else; several processes may do it at once."""
        patterns = [*_WRITTEN, *(f"{self.journal.name}/{name}" for name in ("settings.json", *_JOURNALLED))]
        patterns += [f"{self.audit_journal.name}/{name}" for name in ("settings.json", "lines-*.jsonl", ".lock-*")]
        for path in sorted({path for pattern in patterns for path in self.path.glob(pattern)}):
            if not path.is_dir():
                path.unlink(missing_ok=True)
        for folder in (self.journal, self.audit_journal):
            with contextlib.suppress(OSError):  # not there, or somebody else's files in it
                folder.rmdir()

    def tsv(self, series: Series) -> Path:
        """The tab-separated file of one series."""
        return self.path / f"{series.name}.tsv"

    def proofs(self, series: Series) -> Path:
        """The certificates of one latent series, to be checked."""
        return self.path / f"{series.name}.safetensors"

    def curves(self, space: Space, soundness: Soundness) -> tuple[Path, Path]:
        """The figure of one kind of claim, as PNG and SVG."""
        stem = self.path / f"curve_{space}_{soundness}"
        return stem.with_suffix(".png"), stem.with_suffix(".svg")

    def radii(self, space: Space, soundness: Soundness) -> Path:
        """The radii by class of one kind of claim, as SVG."""
        return self.path / f"radii_{space}_{soundness}.svg"

    @property
    def latents(self) -> Path:
        """Latents with the ellipses of their Gaussians, as SVG."""
        return self.path / "latents.svg"

    @property
    def spectra(self) -> Path:
        """Spectra of the covariances, as SVG."""
        return self.path / "spectra.svg"


@dataclass(frozen=True)
class RunFolder:
    """Everything of one training run.

    Attributes:
        path: The folder.
    """

    path: Path
    BEST: ClassVar[str] = "best"
    LAST: ClassVar[str] = "last"

    @classmethod
    def named(cls, name: str) -> RunFolder:
        """Return the folder of a run's name, ``runs/<name>``.

        Raises:
            ValueError: If that is not a folder below ``runs/``.
        """
        parts = Path(name).parts
        if not parts or ".." in parts or Path(name).is_absolute():
            raise ValueError(f"Expected `name` to be that of a folder below {RUNS}/ but got {name!r}.")
        return cls(RUNS / name)

    @property
    def config(self) -> Path:
        """The configuration of the first fit."""
        return self.path / "config.yaml"

    def configs(self) -> list[Path]:
        """The configurations of all fits that are there, the first and those of resumed ones."""
        return [path for path in (self.config, *sorted(self.path.glob("config-*.yaml"))) if path.exists()]

    @property
    def metrics(self) -> Path:
        """What the last fit logged."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The latest checkpoint."""
        return self.checkpoints / f"{self.LAST}.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint that did best on the validation split."""
        return self.checkpoints / f"{self.BEST}.ckpt"

    def checkpoint(self) -> Path:
        """Return the checkpoint to use where none is named: the best there is, else the latest.

        Raises:
            FileNotFoundError: If there is neither.
        """
        found = next((path for path in (self.best, self.last) if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"Expected {self.best} or {self.last} but there is neither; train first, or name a checkpoint by "
                "--ckpt_path."
            )
        return found

    def has_checkpoint(self) -> bool:
        """Whether there is anything to go on from."""
        return any(self.checkpoints.glob("*.ckpt")) or any(self.path.glob("hpc_ckpt_*.ckpt"))

    def requeued(self) -> Path | None:
        """Return the checkpoint that requeueing under SLURM left, if it is newer than the latest of the run."""
        left = [*self.path.glob("hpc_ckpt_*.ckpt"), *self.checkpoints.glob(f"{self.LAST}*.ckpt")]
        newest = max(left, key=lambda path: path.stat().st_mtime_ns, default=None)
        return newest if newest is not None and newest.parent == self.path else None

    def results(self, split: str) -> ResultsFolder:
        """Return where the certificates of a split go unless another folder is named."""
        return ResultsFolder(self.path / "certify" / split)

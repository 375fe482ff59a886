"""What a certification run leaves behind: files for other tools, the summary, figures and the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from ellips.certificates import METHODS
from ellips.classifier import Ellips
from ellips.encoders.weights import file_digest
from ellips.files import (
    ImageRecord,
    ResultsFolder,
    certificate_from_records,
    records_to_tensors,
    replace_file,
    save_certificates,
    write_table,
    write_tsv,
)
from ellips.reporting.audit import FileOf, audit_section
from ellips.reporting.curves import LabelledCurve, group_by_claim
from ellips.reporting.figures import plot_curves, save_figure
from ellips.reporting.html import ClassTable, Figures, ReportImage, choose_images, class_table, render_report
from ellips.reporting.latents import plot_latents, plot_radii_by_class, plot_spectra
from ellips.reporting.summary import GivenRadii, curve_of, label_of, records_by_series, summarize, tabulated_radii
from ellips.reporting.tables import accuracy_table
from ellips.reporting.templates import milliseconds
from ellips.types import Series, Soundness, Space
from ellips.versions import versions


def no_file(row: int) -> None:
    """Say that an image has no file of its own."""
    del row


@dataclass
class RunReport:
    """The records of a run and how to show them.

    Attributes:
        folder: Where everything is written.
        records: Records of all series.
        expected: Positions that every series should hold.
        radii: See :data:`ellips.reporting.summary.GivenRadii`.
        confidence: Coverage of the Clopper–Pearson intervals.
        title: What was certified, for headings.
        info: Further entries of the summary: settings, digests, fingerprints.
        proofs: The classifier and, by position, the latents that were certified; with them, certificates whose latent
            radii can be checked are saved in files.
        kept: By series and position, other latents that its latent radii were proven of.
        class_names: Of the classes; none: their numbers.
        file_of: Gives an image's file by its position, or None.
    """

    folder: ResultsFolder
    records: Sequence[ImageRecord]
    expected: Sequence[int]
    radii: GivenRadii
    confidence: float = 0.95
    title: str = "Certified accuracy"
    info: Mapping[str, Any] = field(default_factory=dict)
    proofs: tuple[Ellips, Mapping[int, Tensor]] | None = None
    kept: Mapping[Series, Mapping[int, Tensor]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    file_of: FileOf = no_file

    def summary(self) -> dict[str, Any]:
        """Return the summary, ready for JSON."""
        found = summarize(self.records, self.expected, self.radii, confidence=self.confidence)
        return {**found, **self.info, "versions": versions()}

    def write(self, images: Iterable[ReportImage] = ()) -> dict[str, Any]:
        """Write every file and return the summary.

        ``<series>.tsv`` for each series, ``certificates.csv`` (full precision), ``summary.json``, curves as PNG and
        SVG, one pair per space and soundness class, radii by class as SVG, and ``report.html``, which needs no other
        file. With :attr:`proofs`, also ``<series>.safetensors`` for each series that has a latent part (see
        :func:`ellips.certificates.check`), and the Gaussians as ``latents.svg`` and ``spectra.svg``.

        Args:
            images: Images to show in the report; see :meth:`wanted_images`.
        """
        for series, rows in records_by_series(self.records).items():
            write_tsv(self.folder.tsv(series), rows)
            self._save_proofs(series, rows)
        write_table(self.folder.table, self.records)
        summary = {**self.summary(), "sha256": {self.folder.table.name: file_digest(self.folder.table)}}
        replace_file(self.folder.summary, json.dumps(summary, indent=1) + "\n")
        page = render_report(
            self.title,
            summary,
            self._figures(),
            list(images),
            self._class_tables(),
            audit_section(self.folder, self.file_of),
        )
        replace_file(self.folder.report, page)
        return summary

    def _figures(self) -> Figures:
        """Draw, and write the drawings."""
        curves: dict[str, str] = {}
        radii: dict[str, str] = {}
        for (space, soundness), group in group_by_claim(self.curves()).items():
            figure = plot_curves(group, self.title, self.confidence)
            _, vector = save_figure(figure, *self.folder.curves(space, soundness))
            curves[f"{space} space, {soundness}"] = vector.read_text(encoding="utf-8")
        for (space, soundness), rows in self._shown_by_class().items():
            names = self.class_names or None
            figure = plot_radii_by_class(*records_to_tensors(rows), names, space=space, soundness=soundness)
            radii[f"{space} space, {soundness}"] = _drawn(figure, self.folder.radii(space, soundness))
        return Figures(curves, radii, *self._gaussians())

    def _gaussians(self) -> tuple[str, str]:
        """Draw the mixture and the latents that were certified; of one dimension there is nothing to see."""
        labels = {record.index: record.label for record in self.records}
        if self.proofs is None or not labels or self.proofs[0].dim < 2:
            return "", ""
        ellips, latents = self.proofs
        z = torch.stack([latents[index] for index in labels])
        names = self.class_names or None
        scatter = plot_latents(ellips, z, torch.tensor(list(labels.values())), names)
        return _drawn(scatter, self.folder.latents), _drawn(plot_spectra(ellips, names), self.folder.spectra)

    def _shown_by_class(self) -> dict[tuple[Space, Soundness], list[ImageRecord]]:
        """Return the last series of each space and soundness class, which is that of the best latent certificate."""
        series = records_by_series(self.records).values()
        return {(rows[0].space, rows[0].soundness): rows for rows in series}

    def _class_tables(self) -> dict[str, ClassTable]:
        radii = tabulated_radii(self.records, self.radii)
        return {
            f"{space} space, {soundness}": class_table(rows, radii[space], self.class_names)
            for (space, soundness), rows in self._shown_by_class().items()
        }

    def _save_proofs(self, series: Series, rows: Sequence[ImageRecord]) -> None:
        if self.proofs is None:
            return
        ellips, latents = self.proofs
        if series in self.kept:
            latents = self.kept[series]
        elif not _about_latents(rows[0]):
            return
        z, index = torch.stack([latents[r.index] for r in rows]), torch.tensor([r.index for r in rows])
        save_certificates(self.folder.proofs(series), certificate_from_records(rows), z, ellips, index)

    def wanted_images(self, count: int = 8) -> dict[str, list[ImageRecord]]:
        """Choose the images worth a look, by the last series: see :func:`ellips.reporting.html.choose_images`."""
        series = records_by_series(self.records)
        return choose_images(list(series.values())[-1], count) if series else {}

    def curves(self, tabulated: bool = False) -> list[LabelledCurve]:
        """Return a curve per series, on the radii to tabulate or on a fine grid."""
        curves, radii = [], tabulated_radii(self.records, self.radii)
        for series, rows in records_by_series(self.records).items():
            grid = sorted({0.0, *radii[series.space]})
            how: dict[str, Any] = {"radii": grid} if tabulated else {"max_radius": grid[-1]}
            curves.append(curve_of(rows, label_of(series, rows), confidence=self.confidence, **how))
        return curves

    def show(self, console: Console, summary: Mapping[str, Any]) -> None:
        """Print a table per space and soundness class, and what is missing."""
        for group in group_by_claim(self.curves(tabulated=True)).values():
            entries = {(entry["space"], entry["label"]): entry for entry in summary["series"].values()}
            seconds = [entries[curve.space, curve.label]["seconds_per_image"]["median"] for curve in group]
            times = [milliseconds(value) for value in seconds]
            console.print(accuracy_table(group, self.title, self.confidence, [("ms", times)]))
        for name, entry in summary["series"].items():
            if entry["lowered"] or entry["corrected"] or entry["unconfirmed"]:
                console.print(
                    f"{name}: the verified kernel lowered {entry['lowered']} radii, corrected {entry['corrected']} "
                    f"predictions at ties and could not confirm {entry['unconfirmed']}; both have radius 0.",
                    highlight=False,
                )
            if not entry["complete"]:
                console.print(
                    f"[red]Not complete:[/red] {name} has {entry['present']} of {entry['expected']} images; missing "
                    f"{entry['missing'][:10]}, repeated {entry['repeated'][:10]}."
                )
        console.print(
            f"Everything is in {self.folder.path}/, to look at in {self.folder.report.name}.",
            highlight=False,
            markup=False,
        )


def _about_latents(record: ImageRecord) -> bool:
    """Whether the latents that were kept are those that the certificates are about: not where noise moved them."""
    return record.series.method in METHODS and record.soundness != "probabilistic"


def _drawn(figure: Figure, path: Path) -> str:
    """Write a figure and return its text."""
    return save_figure(figure, path)[0].read_text(encoding="utf-8")

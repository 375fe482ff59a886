"""The report as a browser shows it: nothing cut off on a screen and on a telephone, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ellips import Ellips
from ellips.audit import AuditedImage, verdict, write_audit
from ellips.encoders.weights import file_digest
from ellips.files import ImageRecord, ResultsFolder
from ellips.reporting.audit import TABLE_DIGEST, put_audit
from ellips.reporting.html import ReportImage
from ellips.reporting.run import RunReport
from ellips.types import Series
from tests.browser import LIGHT, SCHEMES, WIDTHS, clipped, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CLASSES = ["Staffordshire_bullterrier", "zero", *(f"class number {k}" for k in range(2, 10))]
CARRIED = ("margin-clever", "jacobian-norm", "smoothed-encoder", "known-constant")
SERIES = [
    *(Series("latent", method) for method in ("theorem", "pairwise", "exact")),
    *(Series("input", "exact", source) for source in CARRIED),
]
RADII = [0.05 * i for i in range(1, 13)]


def write_report(folder: ResultsFolder) -> None:
    """A report with the most and the longest of everything."""
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(10, 4, generator=generator, dtype=torch.float64)
    ellips = Ellips.from_parameters(means, torch.eye(4).expand(10, 4, 4), torch.full((10,), 0.1))
    z, labels = ellips.sample(60, generator=generator)
    long = "CleverSettings(num_batches=500, samples_per_batch=1024, ball_radius=0.30000000000000004)" * 2
    records = [
        ImageRecord(i, int(y), int(y) if i % 7 else -1, 0.7 * (i % 7) / 6, 12.3, series, claim, source=long)
        for series in SERIES
        for claim in ["exact" if series.space == "latent" else "estimated"]
        for i, y in enumerate(labels)
    ]
    files = [
        Path(f"/data/{CLASSES[y]}/a_very_long_file_name_without_any_gap_{i:012d}.jpeg") for i, y in enumerate(labels)
    ]
    info = {
        "settings": {"checkpoint": "runs/" + "deep/" * 40, "certifiers": [long], "nested": {"a": {"b": {"c": long}}}}
    }
    report = RunReport(
        folder,
        records,
        range(60),
        {"latent": RADII, "input": RADII},
        info=info,
        proofs=(ellips, dict(enumerate(z))),
        class_names=CLASSES,
        file_of=files.__getitem__,
    )
    pictures = [
        ReportImage("Worst", r, torch.rand(1, 8, 8), CLASSES[0], CLASSES[0], files[0].name) for r in records[:8]
    ]
    report.write(pictures)
    audited = {
        series.name: [
            AuditedImage(series.name, "estimated", i, 0.5, "autoattack", 0.2512345, True, 2.0, 3.0) for i in range(9)
        ]
        for series in SERIES
    }
    result = {
        "series": {name: verdict(images) for name, images in audited.items()},
        TABLE_DIGEST: file_digest(folder.table),
    }
    write_audit(folder, result, [image for images in audited.values() for image in images])
    put_audit(folder, report.file_of)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = ResultsFolder(tmp_path_factory.mktemp("results"))
    write_report(folder)
    return folder.report


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_column_is_cut_off(browser: Browser, report: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((part) => part.open = true)")
    assert page.locator("svg").count() == 6
    assert clipped(page) == []
    behind, text = page.evaluate(LIGHT)
    assert (behind > 0.9 and text < 0.3) if scheme == "light" else (behind < 0.15 and text > 0.8)
    page.close()


def test_the_measure_sees_a_column_that_is_cut_off(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 480, "height": 900})
    row = "".join(f"<td>{k:.30f}</td>" for k in range(9))
    page.set_content(f"<table><tr>{row}</tr></table>")
    assert clipped(page)
    page.set_content(f"<div style='overflow-x: auto'><table><tr>{row}</tr></table></div>")
    assert clipped(page)
    page.close()

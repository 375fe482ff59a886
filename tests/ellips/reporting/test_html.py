from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from jinja2 import UndefinedError

from ellips import Ellips
from ellips.files import ImageRecord, ResultsFolder
from ellips.reporting.curves import radius_text
from ellips.reporting.html import Figures, ReportImage, _shown, class_table, render_report
from ellips.reporting.run import RunReport
from ellips.reporting.summary import summarize
from ellips.reporting.templates import TEMPLATES
from ellips.types import Series

HOSTILE = "<script>alert('1')</script>\"' onerror=\"alert(2)\" & <b>"
EXACT, CLEVER = Series("latent", "exact"), Series("input", "exact", "clever")
RADII = {"latent": (0.25, 0.5), "input": (0.1,)}


class Page(HTMLParser):
    """Elements with their attributes, and all text outside of the style sheet."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def records(count: int = 4, source: str = "CLEVER") -> list[ImageRecord]:
    latent = [ImageRecord(i, 1, 1, math.inf if i == 3 else 0.25 * i, 0.01, EXACT) for i in range(count)]
    carried = [ImageRecord(i, 1, 1, 0.1, 0.02, CLEVER, "estimated", source=source) for i in range(count)]
    return [*latent, *carried]


def shown(record: ImageRecord, name: str = "cat") -> ReportImage:
    return ReportImage(f"Best: {name}", record, torch.rand(1, 4, 4), name, name, f"{name}/{record.index}.png")


def test_the_page_shows_claims_numbers_images_and_settings() -> None:
    rows = records()
    summary = {**summarize(rows, range(4), RADII), "settings": {"split": "test", "nested": {"seed": 7}}}
    figures = {"latent space, exact": '<?xml version="1.0"?>\n<svg id="one"></svg>', "input space, estimated": "<svg/>"}
    page = Page(render_report("Digits", summary, Figures(figures), [shown(rows[1]), shown(rows[3])]))
    assert page.text.startswith("Digits")
    assert "Complete: every one of the 4 images is there once." in page.text
    assert "Latent space, exact" in page.text
    assert "estimated: sampled, no guarantee. Lipschitz constant: CLEVER." in page.text
    assert "100.0 %" in page.text
    assert "p95 20" in page.text
    assert "radius no limit" in page.text
    assert "cat/1.png is cat, predicted cat" in page.text
    assert "radius 0.25" in page.text
    assert "seed 7" in page.text
    assert (page.count("svg"), page.count("img"), page.count("h1")) == (2, 2, 1)
    assert all((a["src"] or "").startswith("data:image/png;base64,") for tag, a in page.elements if tag == "img")


def test_no_radius_is_shown_rounded_up() -> None:
    record = replace(records(1)[0], radius=0.28999)
    assert _shown(shown(record))["radius"] == "0.2899"
    # Radii that were asked for stay as they were written, where that is short enough.
    assert [
        radius_text(r) for r in (0.3, 0.25, 1.0, 36 / 255, 72 / 255, 1e-5)
    ] == "0.3 0.25 1 0.1411 0.2823 1e-05".split()
    assert radius_text(72 / 255, 6) == "0.282352"


def test_what_is_missing_is_named() -> None:
    page = Page(render_report("Digits", summarize(records(), range(6), RADII), Figures({}), []))
    assert "Not complete. latent-exact: 4 of 6 images; missing [4, 5], repeated []; input-exact-clever: 4" in page.text
    empty = Page(render_report("Digits", summarize([], range(3), RADII), Figures({}), []))
    assert "Not complete. Nothing was certified." in empty.text


def test_names_and_paths_of_strangers_are_text() -> None:
    rows = [*records(source=HOSTILE), ImageRecord(0, 1, 1, 0.5, 0.01, Series("latent", HOSTILE))]
    summary = {**summarize(rows, range(5), RADII), "settings": {HOSTILE: {"checkpoint": f"/data/{HOSTILE}/last.ckpt"}}}
    tables = {"latent space, exact": class_table(rows[:4], [0.25], [HOSTILE, HOSTILE])}
    text = render_report(HOSTILE, summary, Figures({}), [shown(rows[0], HOSTILE)], tables)
    page, plain = Page(text), " ".join(HOSTILE.split())
    assert {"script", "b"}.isdisjoint(tag for tag, _ in page.elements)
    assert {name for _, attributes in page.elements for name in attributes} <= {
        *("lang", "charset", "name", "content", "class", "alt", "src", "open")
    }
    assert page.text.count(plain) >= 11  # title, heading, series, source, group, file, class thrice, setting, path
    assert f"/data/{plain}/last.ckpt" in page.text


def test_figures_in_the_report_of_a_run_are_free_of_markup_in_names(tmp_path: Path) -> None:
    info = {"settings": {"checkpoint": f"{HOSTILE}.ckpt"}}
    means, latents = torch.eye(2, 3), {row: torch.full((3,), row / 4) for row in range(4)}
    proofs = (Ellips.from_parameters(means, torch.eye(3).expand(2, 3, 3), torch.full((2,), 0.5)), latents)
    report = RunReport(ResultsFolder(tmp_path), records(), range(4), RADII, title=HOSTILE, info=info, proofs=proofs)
    report.class_names = [HOSTILE, f"$\\frac{HOSTILE}$"]
    report.write([shown(record, HOSTILE) for record in records()[:2]])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.count("svg") == 6  # of two claims the curves and the radii by class, the latents, the spectra
    assert page.count("script") == page.count("b") == 0
    assert not any("onerror" in attributes for _, attributes in page.elements)


def test_a_name_that_the_template_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        TEMPLATES.get_template("report.html.jinja").render()


def test_classes_are_counted_by_themselves() -> None:
    rows = [
        ImageRecord(i, label, 1, radius, 0.1, EXACT) for i, (label, radius) in enumerate([(1, 0.5), (1, 2), (0, 3)])
    ]
    table = class_table(rows, [0.0, 0.25, 0.5, 1.0, 2.0], ["cat", "dog"])
    assert (table.series, table.radii) == ("latent-exact", [0.25, 1.0, 2.0])
    assert table.rows == [("cat", 1, [0.0] * 4, 0.0), ("dog", 2, [1.0, 1.0, 0.5, 0.5], 1.25)]
    assert class_table(rows, [0.0]).rows[1].name == "1"

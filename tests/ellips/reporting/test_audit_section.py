"""The audit in the report: there when it is of these results, gone when they changed, text where names are hostile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ellips.audit import AuditedImage, verdict, write_audit
from ellips.encoders.weights import file_digest
from ellips.files import ImageRecord, ResultsFolder
from ellips.reporting.audit import TABLE_DIGEST, put_audit, short_name
from ellips.reporting.run import RunReport
from ellips.types import Series

HOSTILE = "<script>.png"
RECORDS = [ImageRecord(i, 1, 1, 0.5, 0.01, Series("input", "exact", "jacobian-norm"), "estimated") for i in range(30)]


def report_of(folder: ResultsFolder, records: list[ImageRecord]) -> RunReport:
    return RunReport(folder, records, range(30), {}, file_of=lambda row: Path("/data/images/dog") / f"{row}{HOSTILE}")


def audited(folder: ResultsFolder) -> None:
    name = RECORDS[0].series.name
    images = [AuditedImage(name, "estimated", i, 0.5, "pgd" if i else None, 0.25, True, 2.0, 3.0) for i in range(30)]
    result = {"series": {name: verdict(images)}, TABLE_DIGEST: file_digest(folder.table)}
    write_audit(folder, result, images)


def test_the_audit_goes_into_the_report_and_stays_until_the_results_change(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    report = report_of(folder, RECORDS)
    report.write()
    before = folder.report.read_text(encoding="utf-8")
    assert "<h2>Audit</h2>" not in before
    audited(folder)
    assert put_audit(folder, report.file_of)
    page = folder.report.read_text(encoding="utf-8")
    assert "<td>input-exact-jacobian-norm</td><td>estimated</td><td>30</td><td>29</td>\n<td>1.500</td>" in page
    assert "29 broken, the first 20" in page
    assert page.count("<td>pgd</td><td>0.25</td><td>0.5</td>") == 20
    assert "dog/1&lt;script&gt;.png" in page
    assert "<script>" not in page
    assert put_audit(folder, report.file_of)
    assert folder.report.read_text(encoding="utf-8") == page  # replaced, not added
    report.write()
    assert "<h2>Audit</h2>" in folder.report.read_text(encoding="utf-8")
    report_of(folder, RECORDS[:20]).write()
    assert "<h2>Audit</h2>" not in folder.report.read_text(encoding="utf-8")


def test_reports_of_earlier_versions_and_damaged_audits(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    assert not put_audit(folder, lambda _: None)
    folder.report.write_text("<html></html>")
    assert not put_audit(folder, lambda _: None)
    assert folder.report.read_text() == "<html></html>"
    report_of(folder, RECORDS).write()
    audited(folder)
    found = json.loads(folder.audit[0].read_text())
    del found["series"][RECORDS[0].series.name]["violations"]
    folder.audit[0].write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"audit\.json: expected what `ellips audit` writes"):
        put_audit(folder, lambda _: None)


def test_a_file_is_named_with_its_folder() -> None:
    assert short_name(Path("/data/images/dog/1.png")) == "dog/1.png"
    assert short_name(None) is None

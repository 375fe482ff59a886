"""The table of a certification run, if it is the one that the run wrote."""

from __future__ import annotations

from collections import Counter

from ellips.encoders.weights import file_digest
from ellips.files.folders import ResultsFolder
from ellips.files.lines import read_json
from ellips.files.records import ImageRecord
from ellips.files.table import read_table


def read_results(folder: ResultsFolder) -> list[ImageRecord]:
    """Read the full-precision table of a run; its summary says what SHA-256 it was written with, if it is not old.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not the one that was written, malformed, or has an image more than once in a series.
    """
    if not folder.table.is_file():
        raise FileNotFoundError(f"Expected {folder.table}, which `ellips certify` writes, but there is none.")
    digests = read_json(folder.summary).get("sha256") if folder.summary.is_file() else None
    recorded = digests.get(folder.table.name) if isinstance(digests, dict) else None
    if recorded is not None and file_digest(folder.table) != recorded:
        raise ValueError(
            f"Expected {folder.table} to have the SHA-256 {recorded} of {folder.summary.name} but it was changed; "
            "certify again with the same settings, which writes it anew from the journal."
        )
    records = read_table(folder.table)
    counts = Counter((record.series, record.index) for record in records)
    if twice := sorted({index for (_, index), count in counts.items() if count > 1}):
        raise ValueError(
            f"{folder.table}: expected each image once in every series but these come more often: {twice[:10]}."
        )
    return records

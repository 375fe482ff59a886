"""Per-image files: the tab-separated one that the field's analysis scripts read, and the full-precision table.

The tab-separated format is that of Cohen et al. 2019: header ``idx label predict radius correct time``, abstention is
prediction −1 with radius 0.0 and correct 0. Its radius is rounded *down* here, so that no written radius exceeds the
certified one. The full table is a CSV with every column known, floats written so that they read back bit for bit.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from decimal import ROUND_DOWN, Context, Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ellips.certificates.certificate import Certificate
from ellips.types import SOUNDNESS_ORDER, Soundness, Space

TSV_HEADER = ("idx", "label", "predict", "radius", "correct", "time")
ABSTAIN = -1
_CARRIED = ("latent_radius", "lipschitz", "ball_radius")
_TIME = re.compile(r"(?:(?P<days>\d+) days?, )?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d(?:\.\d+)?)")


@dataclass(frozen=True)
class ImageRecord:
    """One image's certificate in one series of a run.

    A *series* is what may stand in one column: one method in one space with one source of the Lipschitz constant.

    Attributes:
        index: Position in the split's dataset.
        label: True class.
        prediction: Predicted class, −1 for an abstention.
        radius: Certified ℓ2 radius, 0 for an abstention.
        seconds: Time spent on the image.
        series: Name of the series.
        space: Where the radius is measured.
        soundness: What it may claim.
        method: How the latent radius was computed.
        margin: Score of the prediction minus score of the rival.
        rival: The class whose boundary is nearest.
        multiplier: Dual multiplier that proves the latent radius.
        latent_radius: Radius before division by the Lipschitz constant, in input space.
        lipschitz: Lipschitz constant, in input space.
        ball_radius: Radius of the ball on which the constant is claimed, in input space.
        source: How the constant was obtained, in input space.
        seed: Seed of the run.
        diagnostics: Further figures by name, such as the p-value of a fit.
    """

    index: int
    label: int
    prediction: int
    radius: float
    seconds: float
    series: str = ""
    space: Space = "latent"
    soundness: Soundness = "exact"
    method: str = ""
    margin: float = math.nan
    rival: int = ABSTAIN
    multiplier: float = math.nan
    latent_radius: float | None = None
    lipschitz: float | None = None
    ball_radius: float | None = None
    source: str | None = None
    seed: int = 0
    diagnostics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise ValueError(f"Expected `radius` of image {self.index} to be at least 0 but got {self.radius}.")
        if self.prediction == ABSTAIN and self.radius != 0:
            raise ValueError(f"Expected the abstention on image {self.index} to have radius 0 but got {self.radius}.")

    @property
    def correct(self) -> bool:
        """Whether the prediction is right; an abstention is not."""
        return self.prediction == self.label


def records_from_certificate(
    certificate: Certificate, index: Tensor, label: Tensor, *, series: str, seconds: float, seed: int = 0
) -> list[ImageRecord]:
    """Turn a batch's certificate into records.

    Args:
        certificate: The certificate of N images.
        index: Shape ``(N,)``, positions in the dataset.
        label: Shape ``(N,)``, true classes.
        series: Name of the series.
        seconds: Time spent on each image.
        seed: Seed of the run.
    """
    certificate = certificate.cpu()
    columns = {name: value.tolist() for name, value in certificate.tensors().items()}
    diagnostics = {name: value.tolist() for name, value in certificate.diagnostics.items()}
    return [
        ImageRecord(
            index=i,
            label=y,
            series=series,
            seconds=seconds,
            seed=seed,
            space=certificate.space,
            soundness=certificate.soundness,
            method=certificate.method,
            source=certificate.source,
            diagnostics={name: values[row] for name, values in diagnostics.items()},
            **{name: values[row] for name, values in columns.items()},
        )
        for row, (i, y) in enumerate(zip(index.tolist(), label.tolist(), strict=True))
    ]


def certificate_from_records(records: Sequence[ImageRecord]) -> Certificate:
    """Return the certificate that the records of one series came from.

    Raises:
        ValueError: If the records are of several series, or there are none.
    """
    kinds = {(r.series, r.method, r.soundness, r.space, r.source) for r in records}
    if len(kinds) != 1:
        raise ValueError(f"Expected records of one series but got {len(kinds)}: {sorted(map(str, kinds))}.")

    def column(name: str) -> Tensor | None:
        values = [getattr(record, name) for record in records]
        return None if None in values else torch.tensor(values, dtype=torch.float64)

    radius, prediction, _ = records_to_tensors(records)
    rows: dict[str, Any] = {name: column(name) for name in ("margin", "multiplier", *_CARRIED)}
    first = records[0]
    about: dict[str, Any] = {"method": first.method, "soundness": first.soundness, "source": first.source}
    return Certificate(
        prediction=prediction,
        radius=radius,
        rival=torch.tensor([r.rival for r in records]),
        space=first.space,
        **rows,
        **about,
    )


def records_to_tensors(records: Sequence[ImageRecord]) -> tuple[Tensor, Tensor, Tensor]:
    """Return radius (float64), prediction and label (int64), each ``(N,)``: what the metrics take."""
    return (
        torch.tensor([r.radius for r in records], dtype=torch.float64),
        torch.tensor([r.prediction for r in records], dtype=torch.int64),
        torch.tensor([r.label for r in records], dtype=torch.int64),
    )


# ------------------------------------------------------------------ the compatible file


def write_tsv(path: str | Path, records: Iterable[ImageRecord], digits: int = 6) -> None:
    """Write the tab-separated file, in the order given, replacing one that is there.

    Args:
        path: The file.
        records: Records of one series.
        digits: Significant digits of the radius; what lies beyond them is cut off, never rounded up.
    """
    lines = ["\t".join(TSV_HEADER), *(tsv_line(record, digits) for record in records)]
    replace_file(Path(path), "\n".join(lines) + "\n")


def tsv_line(record: ImageRecord, digits: int = 6) -> str:
    """Return one line of the tab-separated file, without its end."""
    radius = round_down_text(record.radius, digits)
    cells = (record.index, record.label, record.prediction, radius, int(record.correct), format_time(record.seconds))
    return "\t".join(str(cell) for cell in cells)


def read_tsv(path: str | Path) -> list[ImageRecord]:
    """Read a tab-separated file of this or another tool.

    Raises:
        ValueError: If the header is another, a row is malformed, ``correct`` is anything but 0 or 1 or contradicts the
            prediction, or an index comes twice; the message names file and line.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    header = tuple(lines[0].split("\t")) if lines else ()
    if header != TSV_HEADER:
        raise ValueError(f"{path}: expected the header {TSV_HEADER} but got {header}.")
    records: list[ImageRecord] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            records.append(_parse_tsv_line(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    twice = [index for index, count in Counter(r.index for r in records).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: expected every index once but got these more often: {twice[:10]}.")
    return records


def _parse_tsv_line(line: str) -> ImageRecord:
    cells = line.split("\t")
    if len(cells) != len(TSV_HEADER):
        raise ValueError(f"expected {len(TSV_HEADER)} columns but got {len(cells)}.")
    index, label, predict, radius, correct, time = cells
    if correct not in ("0", "1"):
        raise ValueError(f"expected `correct` to be 0 or 1 but got {correct!r}; is it a running count?")
    record = ImageRecord(
        index=int(index), label=int(label), prediction=int(predict), radius=float(radius), seconds=parse_time(time)
    )
    if record.correct != bool(int(correct)):
        raise ValueError(f"expected `correct` to say whether {predict} equals {label} but got {correct}.")
    return record


def round_down_text(value: float, digits: int) -> str:
    """Write a non-negative number with at most so many significant digits, cutting off the rest."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0.0"
    return f"{Context(prec=digits, rounding=ROUND_DOWN).create_decimal(Decimal(value)).normalize():f}"


def format_time(seconds: float) -> str:
    """Write a duration as ``H:MM:SS.ffffff``."""
    micros = round(seconds * 1_000_000)
    minutes, micros = divmod(micros, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{micros // 1_000_000:02d}.{micros % 1_000_000:06d}"


def parse_time(text: str) -> float:
    """Read a duration in seconds, from ``H:MM:SS.ffffff`` or from a number of seconds.

    Raises:
        ValueError: If it is neither.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"expected `time` as H:MM:SS.ffffff or in seconds but got {text!r}.") from None
    days, hours, minutes, seconds = (float(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# ------------------------------------------------------------------ the full-precision table

TABLE_HEADER = tuple(item.name for item in fields(ImageRecord))


def write_table(path: str | Path, records: Iterable[ImageRecord]) -> None:
    """Write the full-precision table (CSV), replacing one that is there."""
    replace_file(Path(path), table_lines([], header=True) + table_lines(records))


def table_lines(records: Iterable[ImageRecord], header: bool = False) -> str:
    """Return records, or the header, as CSV text ending in a line feed."""
    buffer = _Lines()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(TABLE_HEADER)
    for record in records:
        row = asdict(record)
        row["diagnostics"] = json.dumps(record.diagnostics, sort_keys=True) if record.diagnostics else ""
        # repr of a float is the shortest text that reads back to the same float.
        writer.writerow("" if v is None else repr(v) if isinstance(v, float) else v for v in row.values())
    return "".join(buffer.parts)


class _Lines:
    """A file that keeps what is written."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: str) -> int:
        self.parts.append(text)
        return len(text)


def read_table(path: str | Path, *, allow_partial: bool = False) -> list[ImageRecord]:
    """Read the full-precision table.

    Args:
        path: The file.
        allow_partial: Leave out a last line that was cut off, as a killed process leaves it.

    Raises:
        ValueError: If the header or a row is malformed; the message names file and line.
    """
    text = Path(path).read_text(encoding="utf-8")
    if allow_partial and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    rows = csv.reader(text.removesuffix("\n").split("\n"))
    header = tuple(next(rows, ()))
    if header != TABLE_HEADER:
        if allow_partial and not header:
            return []
        raise ValueError(f"{path}: expected the columns {TABLE_HEADER} but got {header}.")
    return list(_parse_table(rows, path))


def _parse_table(rows: Iterable[list[str]], path: str | Path) -> Iterator[ImageRecord]:
    for number, row in enumerate(rows, start=2):
        try:
            yield _parse_table_row(dict(zip(TABLE_HEADER, row, strict=True)))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _parse_table_row(row: dict[str, str]) -> ImageRecord:
    if row["space"] not in ("latent", "input") or row["soundness"] not in SOUNDNESS_ORDER:
        raise ValueError(f"expected a space and a soundness class but got {row['space']!r}, {row['soundness']!r}.")
    values: dict[str, Any] = {
        **{name: int(row[name]) for name in ("index", "label", "prediction", "rival", "seed")},
        **{name: float(row[name]) for name in ("radius", "seconds", "margin", "multiplier")},
        **{name: float(row[name]) if row[name] else None for name in _CARRIED},
        **{name: row[name] for name in ("series", "space", "soundness", "method")},
        "source": row["source"] or None,
        "diagnostics": json.loads(row["diagnostics"]) if row["diagnostics"] else {},
    }
    return ImageRecord(**values)


def replace_file(path: Path, text: str) -> None:
    """Write a file so that whoever reads it sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)

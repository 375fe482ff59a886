"""Tables of other tools, in Cohen et al.'s format: what can be told of the file, and of the classifier it is about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from scipy.stats import beta, norm
from torch import Tensor

from ellips.files import ImageRecord
from ellips.files.tsv import TSV_HEADER
from ellips.input_certifiers.base import Predictor
from ellips.types import Soundness
from ellips.validation import at_least, fraction, positive

Verdict = Literal["fine", "doubt", "wrong"]

NORMALISATIONS: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "[-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Means and standard deviations per channel that people subtract and divide by."""


class Row(NamedTuple):
    """One row of the file.

    Attributes:
        line: Its line number.
        index: Position of the image in its data set.
        label: True class, as the file says.
        prediction: Predicted class, −1 for an abstention.
        radius: Claimed radius.
        written: The radius as it is written.
        correct: What the column ``correct`` says.
    """

    line: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    label: int
    prediction: int
    radius: float
    written: str
    correct: str


@dataclass(frozen=True)
class Finding:
    """One answer of the audit.

    Attributes:
        question: What was asked.
        verdict: ``fine``, ``doubt`` (it cannot be told, or matters little) or ``wrong``.
        detail: The answer in words, with numbers.
    """

    question: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class Voting:
    """How the radii of a smoothed classifier were computed (Cohen et al. 2019), if they were.

    Attributes:
        sigma: Standard deviation of the noise on [0, 1] pixels; None: the classifier is not smoothed.
        count: Votes that each radius was estimated from.
        alpha: Allowed probability that a radius does not hold.
        copies: Votes for each prediction that the audit makes itself.
        seed: Of the audit's noise.
    """

    sigma: float | None = None
    count: int = 100_000
    alpha: float = 0.001
    copies: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        positive(sigma=self.sigma)
        at_least(1, count=self.count, copies=self.copies)
        fraction(alpha=self.alpha, ends=False)


def read_rows(path: str | Path) -> tuple[list[Row], list[Finding]]:
    """Read a table and tell which of its lines are none; unlike :func:`ellips.files.read_tsv` it goes on after them.

    Raises:
        ValueError: If the first line is not the format's header.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    header = tuple(lines[0].split("\t")) if lines else ()
    if header != TSV_HEADER:
        raise ValueError(f"{path}: expected the header {TSV_HEADER} but got {header}.")
    rows: list[Row] = []
    bad: list[int] = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        try:
            index, label, prediction = (int(cell) for cell in cells[:3])
            radius = float(cells[3])
            if len(cells) != len(TSV_HEADER) or not radius >= 0:
                raise ValueError
            rows.append(Row(number, index, label, prediction, radius, cells[3].strip(), cells[4].strip()))
        except (ValueError, IndexError):
            if line.strip():
                bad.append(number)
    verdict: Verdict = "wrong" if bad else "fine"
    detail = f"lines {_some(bad)} are no rows" if bad else f"{len(rows)} rows"
    return rows, [Finding("Is every line a row?", verdict, detail)]


def table_findings(rows: Sequence[Row], expected: Sequence[int], labels: Mapping[int, int]) -> list[Finding]:
    """Tell whether every image is there once, with its label, and whether ``correct`` says what it should.

    Args:
        rows: The table.
        expected: Positions that should be there.
        labels: True class by position.
    """
    counts = Counter(row.index for row in rows)
    missing = sorted(set(expected) - counts.keys())
    twice = sorted(index for index, count in counts.items() if count > 1)
    other = sorted(counts.keys() - set(expected))
    said = [
        f"{len(found)} {name} ({_some(found)})"
        for name, found in (("missing", missing), ("more than once", twice), ("not asked for", other))
        if found
    ]
    findings = [Finding("Is every image there once?", "wrong" if said else "fine", "; ".join(said) or "yes")]
    moved = [row.index for row in rows if row.index in labels and labels[row.index] != row.label]
    detail = f"{len(moved)} labels are not the data set's ({_some(moved)})" if moved else "yes"
    findings.append(Finding("Are the labels those of the data set?", "wrong" if moved else "fine", detail))
    off = [row.index for row in rows if row.correct != str(int(row.prediction == row.label and row.prediction >= 0))]
    detail = f"{len(off)} rows contradict label and prediction ({_some(off)}); a running count?" if off else "yes"
    findings.append(Finding("Does `correct` say whether they agree?", "wrong" if off else "fine", detail))
    stuck = [row.index for row in rows if row.prediction < 0 and row.radius > 0]
    if stuck:
        detail = f"{len(stuck)} abstentions have a radius ({_some(stuck)})"
        findings.append(Finding("Do abstentions have radius 0?", "wrong", detail))
    return findings


def rounding_finding(rows: Sequence[Row], voting: Voting) -> Finding:
    """Tell whether radii may have been rounded up.

    The original script writes three significant digits, rounded to nearest, so that a written radius can exceed the
    certified one. Where the votes are known, a radius can only be one of ``count`` values; a written one with none of
    them between itself and one unit of its last digit above is larger than what was certified.
    """
    question = "Are radii rounded up?"
    finite = [row for row in rows if row.radius > 0 and math.isfinite(row.radius)]
    endless = [row.index for row in rows if math.isinf(row.radius)]
    if voting.sigma is not None and endless:
        return Finding(question, "wrong", f"{len(endless)} radii are infinite, which no votes prove ({_some(endless)})")
    if voting.sigma is not None:
        grid = torch.as_tensor(_possible_radii(voting), dtype=torch.float64)
        above = [row for row in finite if not _is_cut_off(row, grid)]
        if above:
            excess = max(_excess(row, grid) for row in above)
            detail = f"{len(above)} radii are no value that {voting.count} votes give, cut off, but lie above one"
            return Finding(question, "wrong", f"{detail}, by up to {excess:.2g} ({_some([r.index for r in above])})")
        top = float(grid.max())
        return Finding(question, "fine", f"every radius is one that {voting.count} votes can give (largest {top:.4g})")
    digits = max((_digits(row.written) for row in finite), default=0)
    if finite and digits <= 4:
        unit = max(0.5 * 10.0 ** Decimal(row.written).as_tuple().exponent for row in finite)  # type: ignore[operator]
        detail = f"radii have {digits} significant digits; if rounded to nearest, one may be too large by {unit:.2g}"
        return Finding(question, "doubt", detail)
    return Finding(question, "fine", f"radii have up to {digits} significant digits")


def _possible_radii(voting: Voting) -> Any:  # noqa: ANN401 - an array
    hits = torch.arange(voting.count // 2, voting.count + 1, dtype=torch.float64).numpy()
    lower = beta.ppf(voting.alpha, hits, voting.count - hits + 1)
    return (voting.sigma or 0.0) * norm.ppf(lower[lower > 0.5])


def _unit(written: str) -> float:
    return float(Decimal(10) ** int(Decimal(written).as_tuple().exponent))


def _is_cut_off(row: Row, grid: Tensor) -> bool:
    slack = 1e-9 * row.radius  # what another library's quantiles may differ by
    return bool(((grid >= row.radius - slack) & (grid < row.radius + _unit(row.written))).any())


def _excess(row: Row, grid: Tensor) -> float:
    below = grid[grid < row.radius]
    return row.radius - (float(below.max()) if len(below) else 0.0)


def _digits(written: str) -> int:
    return len(Decimal(written).normalize().as_tuple().digits)


def normalisation_finding(rows: Sequence[Row], images: Tensor, predict: Predictor) -> Finding:
    """Tell whether the classifier gives the table's predictions on [0, 1] pixels, or on normalised ones.

    A radius that was measured behind a normalisation is too large by up to one over its smallest standard deviation.

    Args:
        rows: Rows of some images.
        images: These images, shape ``(N, C, H, W)``, values in [0, 1].
        predict: The classifier of the table.
    """
    question = "Does normalisation lie inside the certified map?"
    said = torch.tensor([row.prediction for row in rows], device=images.device)
    rates = {"as they are": _agreement(predict(images.double()), said)}
    for name, (mean, std) in NORMALISATIONS.items():
        if images.shape[1] == len(mean):
            shift, scale = (images.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
            rates[f"normalised for {name}"] = _agreement(predict(((images - shift) / scale).double()), said)
    best = max(rates, key=lambda name: (rates[name], name == "as they are"))
    told = ", ".join(f"{rate:.0%} {name}" for name, rate in rates.items())
    if rates[best] < 0.9:
        return Finding(question, "doubt", f"the model gives other predictions than the table: {told} agree")
    if rates[best] > rates["as they are"] + 0.05:
        smallest = min(NORMALISATIONS[best.removeprefix("normalised for ")][1])
        detail = f"no: predictions agree on images {best} ({told}); radii are up to {1 / smallest:.2g} times too large"
        return Finding(question, "wrong", detail)
    return Finding(question, "fine", f"yes: {told} agree")


def _agreement(predicted: Tensor, said: Tensor) -> float:
    judged = (said >= 0) & (predicted >= 0)
    return float((predicted == said)[judged].double().mean()) if bool(judged.any()) else 0.0


def as_records(rows: Sequence[Row], soundness: Soundness) -> list[ImageRecord]:
    """Return the rows as records that :func:`ellips.audit.audit_series` attacks; abstentions have radius 0."""
    return [
        ImageRecord(
            index=row.index,
            label=row.label,
            prediction=row.prediction,
            radius=row.radius if row.prediction >= 0 else 0.0,
            seconds=0.0,
            soundness=soundness,
        )
        for row in rows
    ]


def _some(values: Sequence[int], shown: int = 10) -> str:
    return ", ".join(map(str, values[:shown])) + (" and more" if len(values) > shown else "")

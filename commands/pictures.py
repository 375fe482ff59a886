"""``certify-image FILE ...`` and ``predict FOLDER``: class and radius of pictures that nobody has labelled."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ellips.certificates import Method
from ellips.datamodules.folder import BadImageError, Reading
from ellips.datamodules.listing import is_picture
from ellips.files import ImageRecord, RunFolder, replace_file
from ellips.files.records import ABSTAIN
from ellips.files.tsv import round_down_text
from ellips.input_certifiers import InputCertifier
from ellips.lightning_modules import Certifier
from ellips.lipschitz import ConstantSource
from ellips.pipeline import ImageClassifier
from ellips.progress import ImageProgress
from ellips.types import ImageBatch, Soundness, Space
from ellips.validation import at_least

from .limits import limit_configurations
from .messages import Parser

_ABSTAINED = "none (abstained)"


class PictureRow(NamedTuple):
    """What is known of one picture in one way.

    Attributes:
        file: The file, as it was named.
        prediction: Name of the class.
        radius: Within which nothing changes the class, as far as ``soundness`` says.
        space: Where the radius is measured: on latents, or on [0, 1] pixels.
        soundness: What the radius may claim.
    """

    file: str
    prediction: str
    radius: float
    space: Space
    soundness: Soundness


def certify_pictures(
    files: Sequence[Path],
    run: str | Path,
    certifiers: Sequence[InputCertifier | ConstantSource] = (),
    method: Method = "exact",
    batch_size: int = 32,
) -> list[PictureRow]:
    """Classify and certify pictures, read as those that the classifier was trained on.

    Args:
        files: Picture files.
        run: Run folder, or a checkpoint; see :meth:`ellips.ImageClassifier.from_run`.
        certifiers: Ways to a radius on the image, each a row of its own; none: the radius in latent space.
        method: How the latent radius is computed; the verified kernel confirms it, or lowers it.
        batch_size: Pictures of one size that are encoded at once.

    Returns:
        A row for each picture, or one for each certifier, in the order of the files.

    Raises:
        BadImageError: If some cannot be used; all of them are named.
        ValueError: If a certifier's claim does not cover so many pictures.
    """
    at_least(1, batch_size=batch_size)
    classifier = ImageClassifier.from_run(run)
    certifier = Certifier(classifier, () if certifiers else (method,), certifiers, method)
    certifier.validate_run(len(files))
    certifier.on_predict_start()
    reading = Reading(**{"convert": True, **classifier.description.get("reading", {})})
    rows: dict[int, list[PictureRow]] = {}
    with ImageProgress("Certifying", len(files)) as progress:
        for part in _batches(_sizes(files, reading), batch_size):
            images = torch.stack([reading.read(files[i]) for i in part]).permute(0, 3, 1, 2).float() / 255
            batch = ImageBatch(images, torch.full((len(part),), ABSTAIN), torch.tensor(part))  # of no known class
            for found in certifier.predict_step(batch, 0):
                (i,) = {record.index for record in found.records}
                rows[i] = [_row(files[i], record, classifier.class_names) for record in found.records]
            progress.advance(len(part))
    return [row for i in range(len(files)) for row in rows[i]]


def _row(file: Path, record: ImageRecord, names: Sequence[str] | None) -> PictureRow:
    k = record.prediction
    name = _ABSTAINED if k == ABSTAIN else str(k) if names is None else names[k]
    return PictureRow(str(file), name, record.radius, record.series.space, record.soundness)


def _sizes(files: Sequence[Path], reading: Reading) -> list[tuple[int, ...]]:
    """Return the shapes of pictures; all that cannot be used are named at once."""
    shapes, bad = [], []
    for file in files:
        try:
            shapes.append(tuple(reading.read(file).shape))
        except BadImageError as error:
            bad.append(str(error))
    if bad:
        raise BadImageError("\n".join([f"{len(bad)} of {len(files)} pictures cannot be used:", *bad[:20]]))
    return shapes


def _batches(shapes: Sequence[tuple[int, ...]], size: int) -> Iterator[list[int]]:
    """Cut positions into batches of pictures of one size: without ``resize`` and ``crop`` they come as they are."""
    same: dict[tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        same.setdefault(shape, []).append(i)
    for group in same.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures of a flat folder, by name.

    Raises:
        FileNotFoundError: If there is no such folder, or it has none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected {folder} to be a folder of pictures but there is none.")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not (found := [path for path in files if is_picture(path)]):
        raise FileNotFoundError(f"Expected pictures in {folder} but there are none; folders in it are not entered.")
    return found


def as_csv(rows: Sequence[PictureRow]) -> str:
    """Return the rows as CSV: file, class, radius, space, soundness."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["file", "class", "radius", "space", "soundness"])
    writer.writerows([row.file, row.prediction, repr(row.radius), row.space, row.soundness] for row in rows)
    return buffer.getvalue()


def _show(rows: Sequence[PictureRow]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("file", "class"):
        table.add_column(heading, overflow="fold")
    for heading in ("radius", "space", "soundness"):
        table.add_column(heading, no_wrap=True)
    console = Console()
    for row in rows:
        radius = round_down_text(row.radius, 6)
        table.add_row(Text(row.file), Text(row.prediction), radius, row.space, row.soundness)
    console.print(table)


def _parser(name: str, description: str) -> Parser:
    limit_configurations()
    parser = Parser(prog=f"ellips {name}", description=description)
    parser.add_argument("--name", type=str, default="default", help="Run folder of the training: runs/<name>/.")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="A checkpoint in place of the run's best.")
    parser.add_argument(
        "--certifiers",
        type=list[InputCertifier | ConstantSource],
        default=[],
        help="Ways to a radius on the image; none: radii in latent space.",
    )
    parser.add_argument("--method", type=Method, default="exact", help="How the latent radius is computed.")
    parser.add_argument("--batch_size", type=int, default=32, help="Pictures that are encoded at once.")
    return parser


def _run(parser: Parser, args: Sequence[str] | None) -> tuple[Any, list[PictureRow]]:
    config = parser.parse_args(None if args is None else list(args))
    chosen = parser.instantiate(config)
    given = [Path(file).expanduser() for file in config.pictures]
    files = [file for path in given for file in (pictures_in(path) if path.is_dir() else [path])]
    run = config.ckpt_path or RunFolder.named(config.name).path
    return config, certify_pictures(files, run, chosen.certifiers, config.method, config.batch_size)


def main(args: Sequence[str] | None = None) -> int:
    """``certify-image``: print class, radius and soundness of pictures."""
    parser = _parser("certify-image", "Class, radius and soundness of pictures that nobody has labelled.")
    parser.add_argument("pictures", nargs="+", help="Picture files, or folders of them.")
    _show(_run(parser, args)[1])
    return 0


def predict(args: Sequence[str] | None = None) -> int:
    """``predict FOLDER``: write file, class, radius and soundness of the pictures of a folder."""
    parser = _parser("predict", "Write file, class, radius and soundness of the pictures of a flat folder.")
    parser.add_argument("pictures", nargs=1, help="The folder.")
    parser.add_argument("--out", type=Path | None, default=None, help="The table; none: runs/<name>/predictions.csv.")
    config, rows = _run(parser, args)
    out = config.out or RunFolder.named(config.name).path / "predictions.csv"
    replace_file(out, as_csv(rows))
    print(f"{len(rows)} rows in {out}")
    return 0

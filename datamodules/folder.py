"""Images in folders of classes, and what to do with those that are not as they should be."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import monotonic
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ellips.encoders.weights import file_digest
from ellips.validation import at_least, one_of

from .jpeg import read_jpeg
from .manifest import TIMES
from .sources import ImageSource

_resize = v2.functional.resize

OnBadImage = Literal["raise", "skip"]
Resizing = Literal["pillow", "torch"]


_LOOK_SECONDS = 30.0  # for a look at all images of a split when one of them is bad
_LISTED = 20  # bad images in one message


class BadImageError(ValueError):
    """An image file that cannot be used as it is; the message starts with its path."""


@dataclass(frozen=True)
class Reading:
    """How a file becomes a tensor.

    Attributes:
        mode: ``"RGB"`` or ``"L"`` (grey): what the images are expected to be.
        convert: Convert 8-bit images of another mode (grey, palette, CMYK, alpha) with Pillow; False refuses them.
            16-bit images are refused either way, because Pillow would cut them to 8 bits.
        resize: Length of the shorter side after resizing (bicubic, antialiased), or None.
        crop: Side of the square cut from the middle, or None.
        resizing: ``"pillow"``, or ``"torch"``, which is faster and differs by a level or two of 255 in few pixels.
        scaled: Decode JPEG files that are at least twice as large as ``resize`` at 1/2, 1/4 or 1/8 of their size
            (Pillow's draft mode): faster, and a little other pixels.
    """

    mode: Literal["RGB", "L"] = "RGB"
    convert: bool = False
    resize: int | None = None
    crop: int | None = None
    resizing: Resizing = field(default="pillow", repr=False)
    scaled: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """Check the attributes."""
        one_of(("RGB", "L"), mode=self.mode)
        one_of(get_args(Resizing), resizing=self.resizing)
        at_least(1, resize=self.resize, crop=self.crop)
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"Expected `crop` to be at most `resize` ({self.resize}) but got {self.crop}.")
        if self.scaled and self.resize is None:
            raise ValueError("Expected `resize` with scaled=True, to know how small is enough, but got None.")

    def identity(self) -> str:
        """What pixels depend on. Whichever library decodes, they are the same; what is new since 0.1 is only added."""
        added = [f"{name}={value!r}" for name, value, plain in self._added() if value != plain]
        return " ".join([repr(self), *added])

    def _added(self) -> list[tuple[str, object, object]]:
        return [(item.name, getattr(self, item.name), item.default) for item in fields(self) if not item.repr]

    def read(self, path: Path) -> Tensor:
        """Read one file as uint8 ``(H, W, C)``.

        Raises:
            BadImageError: If it is no image, is cut off, or is of a kind that is not expected.
        """
        if not path.is_file():  # a pipe would be waited for without end
            raise BadImageError(f"{path}: expected an image but it is no ordinary file, or is missing.")
        try:
            pixels = read_jpeg(path, self.mode, self.resize if self.scaled else None)
            if self.resize is not None and self.resizing == "pillow":
                image = (
                    self._opened(path)
                    if pixels is None
                    else Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])
                )
                pixels = np.array(_resize(image, [self.resize], v2.InterpolationMode.BICUBIC))
            elif pixels is None:
                pixels = np.array(self._opened(path))
        except BadImageError:
            raise
        except Exception as error:  # Pillow's plug-ins raise whatever a damaged file leads them to
            raise BadImageError(f"{path}: expected an image but it could not be read: {error}") from error
        return self._fit(torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1))

    def _opened(self, path: Path) -> Image.Image:
        """What Pillow makes of a file."""
        with Image.open(path) as image:
            self._check(image, path)
            if self.scaled and self.resize is not None:
                image.draft(image.mode, (self.resize, self.resize))
            image.load()
            return image if image.mode == self.mode else image.convert(self.mode)

    def _check(self, image: Image.Image, path: Path) -> None:
        # Pillow calls a 16-bit colour PNG "RGB" and drops half its bits; the decoder's raw mode tells.
        deep = image.mode.startswith(("I", "F")) or any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        if deep:
            raise BadImageError(
                f"{path}: expected 8 bits per channel but got more (mode {image.mode}); rescale it first."
            )
        if image.mode != self.mode and not self.convert:
            raise BadImageError(
                f"{path}: expected a {self.mode} image but got mode {image.mode}; convert the file, or set "
                "convert: true."
            )

    def _fit(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(2, 0, 1)
        if self.resize is not None and self.resizing == "torch":
            image = _resize(image, [self.resize], v2.InterpolationMode.BICUBIC)
        if self.crop is not None:
            image = v2.functional.center_crop(image, [self.crop])
        return image.permute(1, 2, 0)


class SkipLog:
    """Files that were skipped, written down by whichever process met them.

    Reading happens in worker processes, so the record is a file that they append to.

    Args:
        path: The file; it comes into being with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: int, file: Path, reason: str) -> None:
        """Append one line, in a single write, so that lines of several processes do not mix."""
        line = json.dumps({"row": row, "path": str(file), "reason": reason}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def entries(self) -> dict[str, str]:
        """Path to reason, each file once, sorted."""
        if not self.path.exists():
            return {}
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return {line["path"]: line["reason"] for line in sorted(lines, key=lambda line: str(line["path"]))}


class FolderSource(ImageSource):
    """Image files with labels.

    Args:
        name: Of the data set and part, for its identity.
        root: The folder that ``files`` are relative to.
        files: Relative paths.
        labels: Class index of each.
        reading: How a file becomes a tensor.
        skipped: Where unreadable files are written down and passed over; None: they raise :class:`BadImageError`.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        files: Sequence[str],
        labels: Sequence[int] | NDArray[np.int64],
        reading: Reading | None = None,
        skipped: SkipLog | None = None,
    ) -> None:
        self.name = name
        self.root = root
        # One array, not a million Python strings, whose reference counts would copy every page in every worker.
        self._files = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.reading = reading or Reading()
        self.skipped = skipped

    def path(self, row: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(bytes(self._files[row]))

    def read(self, rows: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
        """Read images by position.

        Raises:
            BadImageError: If one cannot be used and none may be skipped, or if their sizes differ.
        """
        images: list[Tensor] = []
        kept: list[int] = []
        for row in rows:
            try:
                images.append(self.reading.read(self.path(row)))
                kept.append(row)
            except BadImageError as error:
                if self.skipped is None:
                    raise BadImageError(self._with_others(row, error)) from error
                self.skipped.add(row, self.path(row), str(error))
        self._check_sizes(images, kept)
        if not images:
            return torch.empty(0, 3 if self.reading.mode == "RGB" else 1, 1, 1, dtype=torch.uint8), kept
        return torch.stack(images).permute(0, 3, 1, 2), kept  # channels last in memory, as encoders like it

    def _with_others(self, row: int, error: BadImageError) -> str:
        """Return the message about an image with those about the others that cannot be used, as far as a look shows."""

        def look(other: int) -> str | None:
            try:
                self.reading.read(self.path(other))
            except BadImageError as found:
                return str(found)
            return None

        end = monotonic() + _LOOK_SECONDS
        with ThreadPoolExecutor(4) as pool:
            parts = [range(start, min(start + 64, len(self))) for start in range(0, len(self), 64)]
            found = [text for part in parts if monotonic() < end for text in pool.map(look, part) if text is not None]
        others = [text for text in found if text != str(error)]
        if not others:
            return str(error)
        more = f"\n  and {len(others) + 1 - _LISTED} more" if len(others) >= _LISTED else ""
        listed = "".join(f"\n  {text}" for text in [str(error), *others][:_LISTED])
        return (
            f"{len(others) + 1} images of {self.root} cannot be used; mend or remove them, or go on without "
            f"(on_bad_image: skip):{listed}{more}"
        )

    def _check_sizes(self, images: Sequence[Tensor], rows: Sequence[int]) -> None:
        for image, row in zip(images, rows, strict=True):
            if image.shape != images[0].shape:
                raise BadImageError(
                    f"{self.path(row)}: expected {tuple(images[0].shape[:2])} pixels, the size of "
                    f"{self.path(rows[0])}, but got {tuple(image.shape[:2])}; set `resize` and `crop` to bring all "
                    "images to one size."
                )

    def identity(self) -> dict[str, str]:
        """Name, count, how files are read, SHA-256 over each file's path, size and label, and over times of change.

        The times tell cheaply that a file may have been replaced. Copies have other times: see :meth:`content`.
        """
        digest, times = hashlib.sha256(), hashlib.sha256()
        for row, label in enumerate(self.labels.tolist()):
            path = self.path(row)
            found = path.stat()
            digest.update(f"{path.relative_to(self.root)}|{found.st_size}|{label}\n".encode(errors="surrogateescape"))
            times.update(f"{found.st_mtime_ns}\n".encode())
        return {
            "name": self.name,
            "count": str(len(self)),
            "sha256": digest.hexdigest(),
            "reading": self.reading.identity(),
            TIMES: times.hexdigest(),
        }

    def content(self, rows: Sequence[int]) -> str:
        """Return the SHA-256 over the bytes of some images' files, read by several threads."""
        with ThreadPoolExecutor(8) as pool:
            return hashlib.sha256("".join(pool.map(self._digest, rows)).encode()).hexdigest()

    def _digest(self, row: int) -> str:
        path = self.path(row)
        return file_digest(path) if path.is_file() else "missing"

"""Any folder of classes, and ImageNet, which is one."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from ellips.encoders import FrozenEncoder
from ellips.files import replace_file
from ellips.splits import stratified_split
from ellips.validation import fraction, one_of

from .base import Part, Split
from .encoded import EncodedDataModule
from .folder import FolderSource, OnBadImage, Reading, Resizing, SkipLog
from .listing import find_class_names, list_images
from .sampling import process_rank


class ImageFolderDataModule(EncodedDataModule):
    """Images in ``root/train/<class>/`` and ``root/test/<class>/``.

    Every picture counts; files of another kind (``notes.txt``, ``Thumbs.db``) and names that start with a dot are
    passed over. What cannot be used is named with its path, all of a split at once: a file that is cut off, an image
    with 16 bits per channel or of another mode than expected, an empty class folder, a class that is not in all splits.

    Args:
        encoder: The frozen encoder.
        root: The folder.
        train_dir: Sub-folder with the training images.
        val_dir: Sub-folder with validation images; None: they are set apart from the training images.
        test_dir: Sub-folder with the test images.
        val_fraction: Share of the training images set apart where there is no ``val_dir``, stratified, by ``seed``.
        more_train_dir: Sub-folder, or a path, with further training images of the same classes, such as generated ones;
            they stand behind those of ``train_dir``, and none of them is set apart for validation.
        mode: ``"RGB"`` or ``"L"`` (grey): what the images are expected to be.
        convert: Convert 8-bit images of another mode; False refuses them.
        resize: Length of the shorter side after resizing; None: as they are.
        crop: Side of the square cut from the middle; None: no crop. ``resize`` and ``crop`` make the images that radii
            are measured on; what the encoder resizes afterwards lies inside the certified map.
        resizing: ``"pillow"``, or ``"torch"``: several times faster, with other pixels by a level or two of 255.
        scaled_decoding: Decode JPEG files much larger than ``resize`` at a fraction of their size, as Pillow's draft
            mode does: faster, with a little other pixels. A feature cache knows which of these it was made with.
        on_bad_image: ``"raise"``, or ``"skip"``: go on without the file, and list it at the end and in
            ``skipped_images.tsv`` in the run folder.
        **base_args: Of :class:`EncodedDataModule`.

    Raises:
        BadImageError: While reading, if an image cannot be used and ``on_bad_image`` is ``"raise"``.
        FileNotFoundError: If a folder is missing.
        ValueError: If a class folder is empty or the splits have different classes, or an argument is out of range.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        root: str | Path,
        *,
        train_dir: str = "train",
        val_dir: str | None = None,
        test_dir: str = "test",
        val_fraction: float = 0.1,
        more_train_dir: str | None = None,
        mode: Literal["RGB", "L"] = "RGB",
        convert: bool = False,
        resize: int | None = None,
        crop: int | None = None,
        resizing: Resizing = "pillow",
        scaled_decoding: bool = False,
        on_bad_image: OnBadImage = "raise",
        **base_args: Any,
    ) -> None:
        super().__init__(encoder, **base_args)
        fraction(val_fraction=val_fraction)
        one_of(get_args(OnBadImage), on_bad_image=on_bad_image)
        self.root = Path(root).expanduser()
        self.train_dir = train_dir
        self.val_dir = val_dir
        self.test_dir = test_dir
        self.val_fraction = val_fraction
        self.more_train_dir = more_train_dir
        self.reading = Reading(mode, convert, resize, crop, resizing, scaled_decoding)
        self.on_bad_image = on_bad_image
        self._log = _temporary_log() if on_bad_image == "skip" else None

    @cached_property
    def class_names(self) -> list[str]:
        """Sorted names of the training folder's sub-folders."""
        return find_class_names(self.root / self.train_dir)

    def description(self) -> dict[str, Any]:
        """Names of the classes, and how files are read."""
        return {**super().description(), "reading": asdict(self.reading)}

    def make_source(self, split: Split) -> FolderSource:
        """List the files of a split."""
        own = {"train": self.train_dir, "val": self.val_dir, "test": self.test_dir}[split]
        folder = self.root / (self.train_dir if own is None else own)
        files, labels = list_images(folder, self.class_names)
        if split != "test" and self.val_dir is None:
            rows = self._set_apart(folder, labels, split)
            files, labels = [files[row] for row in rows], labels[rows]
        if split == "train" and self.more_train_dir is not None:
            further = self._more_folder(self.more_train_dir)
            more, more_labels = list_images(further, self.class_names)
            files = [*files, *(os.path.join(os.path.relpath(further, folder), file) for file in more)]
            labels = np.concatenate([labels, more_labels])
        return FolderSource(f"folder/{split}", folder, files, labels, self.reading, self._log)

    def _set_apart(self, folder: Path, labels: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
        """Return the training pictures of one of two splits; every class has to be in it."""
        cause = None
        try:
            if len(rows := stratified_split(labels, {"val": self.val_fraction}, self.seed)[split]):
                return rows
        except ValueError as error:
            cause = error
        raise ValueError(
            f"{folder}: expected pictures of every class for training and for validation but {len(labels)} pictures in "
            f"{len(set(labels.tolist()))} classes are too few with val_fraction={self.val_fraction:g}; "
            "name a folder of validation pictures (val_dir), raise val_fraction, or add pictures."
        ) from cause

    def _more_folder(self, more: str) -> Path:
        """Return where further training images are; never among those that anything is chosen or reported on.

        Raises:
            ValueError: If it is the folder of a split, or lies in one or around it.
        """
        folder = self.root / Path(more).expanduser()
        others = {self.root / name for name in (self.train_dir, self.val_dir, self.test_dir) if name is not None}
        found = folder.resolve()
        for other in sorted(others):
            if found.is_relative_to(other.resolve()) or other.resolve().is_relative_to(found):
                raise ValueError(
                    f"Expected `more_train_dir` to be apart from the images of the splits but got {folder}, which "
                    f"shares some with {other}; move the further training images into a folder of their own."
                )
        return folder

    def check_skipped(self, split: Part, skipped: dict[int, str]) -> None:
        """Accept a cache that lacks images if they may be skipped, and remember to list them."""
        if self._log is None:
            super().check_skipped(split, skipped)
            return
        if len(skipped) == len(self.source("val" if split == "votes" else split)):
            raise ValueError(
                f"Expected images that can be read in {split!r} but all {len(skipped)} were skipped, among them "
                f"{sorted(skipped.values())[:5]}; what is wrong with them is said with on_bad_image: raise."
            )
        for row, path in skipped.items():
            self._log.add(row, Path(path), f"{path}: skipped when the feature cache was made")

    def skipped(self) -> dict[str, str]:
        """Files skipped so far by this process and its readers, each with the reason."""
        return self._log.entries() if self._log is not None else {}

    def teardown(self, stage: str) -> None:
        """List what was skipped, on the screen and in the run folder."""
        del stage
        if not (skipped := self.skipped()):
            return
        world, rank = process_rank(self.trainer)
        folder = Path(self.trainer.default_root_dir) if self.trainer is not None else self.cache_dir or Path(".")
        target = folder / ("skipped_images.tsv" if world == 1 else f"skipped_images-{rank}.tsv")
        rows = [f"{path}\t{' '.join(reason.split())}" for path, reason in skipped.items()]
        replace_file(target, "\n".join(["path\treason", *rows]) + "\n")
        listed = "\n".join(f"  {path}" for path in list(skipped)[:20])
        more = f"\n  and {len(skipped) - 20} more" if len(skipped) > 20 else ""
        rank_zero_warn(f"{len(skipped)} images were skipped (reasons in {target}):\n{listed}{more}")


def _temporary_log() -> SkipLog:
    folder = tempfile.mkdtemp(prefix="ellips-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return SkipLog(Path(folder) / "skipped")


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet in its standard layout, ``root/train/<wnid>/`` and ``root/val/<wnid>/``.

    The validation images of ImageNet are the *test* split here, as in the literature; the validation split is set apart
    from the training images. Images are resized to 256 at their shorter side and cut to 224, which is the resolution
    that radii are measured at. The few grey and CMYK files are converted, as everyone does.

    Args:
        encoder: The frozen encoder.
        root: Folder with ``train`` and ``val``.
        val_fraction: Share of the training images set apart for validation.
        resize: Length of the shorter side after resizing.
        crop: Side of the square cut from the middle.
        resizing: As for :class:`ImageFolderDataModule`.
        scaled_decoding: As for :class:`ImageFolderDataModule`.
        on_bad_image: ``"raise"`` or ``"skip"``.
        **base_args: Of :class:`EncodedDataModule`.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        root: str | Path,
        *,
        val_fraction: float = 0.01,
        resize: int | None = 256,
        crop: int | None = 224,
        resizing: Resizing = "pillow",
        scaled_decoding: bool = False,
        on_bad_image: OnBadImage = "raise",
        **base_args: Any,
    ) -> None:
        super().__init__(
            encoder,
            root,
            test_dir="val",
            val_fraction=val_fraction,
            convert=True,
            resize=resize,
            crop=crop,
            resizing=resizing,
            scaled_decoding=scaled_decoding,
            on_bad_image=on_bad_image,
            **base_args,
        )

    @cached_property
    def class_names(self) -> list[str]:
        """The WordNet ids, sorted, which is the order of ImageNet's labels."""
        names = find_class_names(self.root / self.train_dir)
        if wrong := [name for name in names if not re.fullmatch(r"n\d{8}", name)]:
            raise ValueError(
                f"Expected folders named by WordNet id (n01440764, ...) in {self.root / self.train_dir} but got "
                f"{wrong[:5]}; for other folders of classes take ImageFolderDataModule."
            )
        return names

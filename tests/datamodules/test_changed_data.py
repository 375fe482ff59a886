"""Images that are not what they were, or not what they should be: noticed before any work is done with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from datamodules import ArraySource, BadImageError, CacheMismatchError, ImageFolderDataModule
from datamodules.folder import Reading, SkipLog
from datamodules.listing import list_images
from datamodules.sources import ImageDataset
from ellips.encoders import FrozenEncoder
from ellips.validation import validate_pixels


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="random", input_size=32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with six and two images each, uncompressed: all files are of one size."""
    for split, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                write(tmp_path / split / name / f"{i}.bmp", seed=10 * label + i)
    return tmp_path


def write(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def data(encoder: FrozenEncoder, root: Path, **arguments: object) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        encoder, root, **{"val_fraction": 0.2, "cache_dir": root / "cache", "shard_rows": 2, **arguments}
    )


# ------------------------------------------------------------------ replaced images


def test_an_image_replaced_by_one_of_the_same_size_makes_the_cache_another(encoder: FrozenEncoder, root: Path) -> None:
    data(encoder, root).open_cache("test")
    path = root / "test/dog/1.bmp"
    size = path.stat().st_size
    write(path, seed=99)
    assert path.stat().st_size == size
    with pytest.raises(CacheMismatchError, match=r"identity\.data\.times.*\n.*replaced, or changed, since they were"):
        data(encoder, root).open_cache("test")


def test_copied_images_have_other_times_and_the_cache_goes_on(
    encoder: FrozenEncoder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = data(encoder, root).open_cache("test")
    for path in (root / "test").rglob("*.bmp"):
        os.utime(path, (1, 1))
    monkeypatch.setattr(FrozenEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    after = data(encoder, root).open_cache("test")
    assert torch.equal(after.read(range(4)).feature, before.read(range(4)).feature)
    reads: list[int] = []
    monkeypatch.setattr("datamodules.folder.file_digest", lambda path: reads.append(1) or "")
    data(encoder, root).open_cache("test")
    assert not reads, "the new times are written down: nothing is read a second time"


def test_a_cache_from_before_there_were_times_is_read(encoder: FrozenEncoder, root: Path) -> None:
    import json

    data(encoder, root).open_cache("test")
    path = root / "cache/test/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["identity"]["data"]["times"]
    for entry in manifest["shards"]:
        del entry["files"]
    path.write_text(json.dumps(manifest))
    assert len(data(encoder, root).open_cache("test")) == 4


def test_content_names_the_selected_images_alone(encoder: FrozenEncoder, root: Path) -> None:
    source = data(encoder, root).source("test")
    first = source.content([0, 2])
    write(source.path(1), seed=98)
    assert source.content([0, 2]) == first
    write(source.path(2), seed=98)
    assert source.content([0, 2]) != first
    assert source.content([2, 0]) != source.content([0, 2])
    source.path(0).unlink()
    assert source.content([0]) != source.content([1])


# ------------------------------------------------------------------ files that are no images


def test_a_pipe_is_no_image_and_is_not_waited_for(root: Path) -> None:
    path = root / "train/cat/pipe.png"
    os.mkfifo(path)
    with pytest.raises(BadImageError, match=r"pipe\.png: expected an image but it is no ordinary file"):
        Reading().read(path)


@pytest.mark.parametrize("error", [ValueError("buffer is not large enough"), EOFError("end"), IndexError("index")])
def test_whatever_pillow_raises_names_the_file(root: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ImageFile.ImageFile) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    with pytest.raises(BadImageError, match=r"0\.bmp: expected an image but it could not be read"):
        Reading().read(root / "train/cat/0.bmp")


def test_all_images_unreadable_is_said_with_their_names(encoder: FrozenEncoder, root: Path) -> None:
    for path in (root / "test").rglob("*.bmp"):
        path.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"images that can be read in 'test' but all 4 were skipped.*0\.bmp"):
        data(encoder, root, on_bad_image="skip").open_cache("test")


def test_names_that_are_no_text_are_listed_when_they_are_skipped(encoder: FrozenEncoder, root: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(root / "test/cat") + b"/caf\xe9.bmp"))
    odd.write_bytes(b"none")
    module = data(encoder, root, on_bad_image="skip")
    assert len(module.open_cache("test")) == 4
    with pytest.warns(UserWarning, match="1 images were skipped"):
        module.teardown("fit")
    assert r"caf\udce9.bmp" in (root / "cache/skipped_images.tsv").read_text()
    log = SkipLog(root / "skipped")
    log.add(0, odd, "why")
    assert log.entries() == {str(odd): "why"}


# ------------------------------------------------------------------ links


@pytest.mark.parametrize("target", ["..", ".", "../../train", "../dog"])
def test_a_folder_that_is_met_twice_is_refused(root: Path, target: str) -> None:
    (root / "train/cat/again").symlink_to(target, target_is_directory=True)
    with pytest.raises(ValueError, match=r"Expected every folder once but .* leads to .* again"):
        list_images(root / "train", ["cat", "dog"])


def test_links_to_folders_elsewhere_and_to_files_are_followed_in_the_order_as_before(
    root: Path, tmp_path: Path
) -> None:
    shutil.move(root / "train/cat", root / "elsewhere")
    (root / "train/cat").symlink_to(root / "elsewhere", target_is_directory=True)
    (root / "elsewhere/9.bmp").symlink_to(root / "train/dog/0.bmp")
    for name in ("a/b/0.bmp", "a-b/0.bmp", "a/0.bmp"):
        (root / "train/dog" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "test/dog/0.bmp", root / "train/dog" / name)
    files, labels = list_images(root / "train", ["cat", "dog"])
    assert files[:7] == [f"cat/{i}.bmp" for i in (0, 1, 2, 3, 4, 5, 9)]
    assert files[-3:] == ["dog/a/0.bmp", "dog/a-b/0.bmp", "dog/a/b/0.bmp"]  # paths of folders as texts are sorted
    assert np.bincount(labels).tolist() == [7, 9]


# ------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 255.0), (-1.0, 1.0), (-1e-6, 0.5), (0.0, 1.0001), (float("nan"), 0.5), (0.0, float("inf"))]
)
def test_values_outside_0_and_1_are_refused(low: float, high: float) -> None:
    images = torch.rand(3, 1, 4, 4).clamp(0.1, 0.9)
    images[1, 0, 0, 0], images[1, 0, 0, 1] = low, high
    dataset = ImageDataset(ArraySource("x", images, [0, 1, 2]))
    assert len(dataset[[0, 2]].image) == 2
    with pytest.raises(ValueError, match=r"values in \[0, 1\] but got .* in 1 images \(\['1'\]\).* divide by 255"):
        dataset[[0, 1, 2]]


def test_whole_numbers_other_than_bytes_are_refused_and_the_ends_are_not() -> None:
    with pytest.raises(ValueError, match=r"uint8, or floating point in \[0, 1\], but got torch\.int64"):
        validate_pixels(torch.zeros(1, 1, 2, 2, dtype=torch.int64))
    validate_pixels(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))
    validate_pixels(torch.zeros(0, 3, 1, 1))

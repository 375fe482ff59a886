"""JPEG files read without Pillow: its very pixels, or none, whatever is in the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules import CacheMismatchError, ImageFolderDataModule, folder
from datamodules.folder import BadImageError, Reading
from datamodules.jpeg import draft_scale, read_jpeg
from ellips.encoders import FrozenEncoder

SIZES = [(1, 1), (7, 9), (31, 45), (64, 64), (77, 100)]


def photo(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth colours and some noise, as photographs are."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    noisy = (smooth + generator.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def encoded(image: Image.Image, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def with_pillow(reading: Reading, path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    with monkeypatch.context() as context:
        context.setattr(folder, "read_jpeg", lambda *_: None)
        return reading.read(path)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_are_those_of_pillow(tmp_path: Path, subsampling: str, progressive: bool) -> None:
    for seed, (size, quality) in enumerate((size, quality) for size in SIZES for quality in (30, 75, 95)):
        image = photo(*size, seed=seed)
        path = tmp_path / "a.jpg"
        path.write_bytes(encoded(image, quality=quality, subsampling=subsampling, progressive=progressive))
        pixels = read_jpeg(path, "RGB")
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(Image.open(path)))
        path.write_bytes(encoded(image.convert("L"), quality=quality, progressive=progressive))
        grey = read_jpeg(path, "L")
        assert grey is not None
        assert np.array_equal(grey[:, :, 0], np.asarray(Image.open(path)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_scaled_pixels_are_those_of_pillows_draft(
    tmp_path: Path, mode: Literal["RGB", "L"], subsampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    for size in ((64, 64), (77, 100), (130, 99), (203, 257)):
        settings = {} if mode == "L" else {"subsampling": subsampling}
        path.write_bytes(encoded(photo(*size, mode), **settings))
        for least in (8, 16, 25, 33, 60):
            reading = Reading(mode, resize=least, crop=least, scaled=True)
            assert read_jpeg(path, mode, least) is not None
            assert torch.equal(reading.read(path), with_pillow(reading, path, monkeypatch))
            scaled = min(size) >= 2 * least
            assert torch.equal(reading.read(path), Reading(mode, resize=least, crop=least).read(path)) != scaled


def test_how_far_a_file_is_scaled() -> None:
    assert [draft_scale(800, 1000, least) for least in (None, 801, 401, 400, 201, 200, 100, 10)] == [
        1, 1, 1, 2, 2, 4, 8, 8,
    ]  # fmt: skip


def grey_with_alpha(path: Path) -> None:
    photo(20, 20).convert("LA").save(path, "PNG")


def palette_with_transparency(path: Path) -> None:
    photo(20, 20).quantize(8).save(path, "PNG", transparency=3)


def turned(path: Path) -> None:
    """EXIF says that the picture lies on its side: pixels are taken as they are stored, as ever."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(20, 28).save(path, "JPEG", exif=exif)


def rgb_without_transform(path: Path) -> None:
    photo(20, 28).save(path, "JPEG", keep_rgb=True)


OTHERS = {
    "CMYK": lambda path: photo(20, 20, "CMYK").save(path, "JPEG"),
    "grey": lambda path: photo(20, 20, "L").save(path, "JPEG"),
    "palette with transparency": palette_with_transparency,
    "grey with alpha": grey_with_alpha,
    "alpha": lambda path: photo(20, 20, "RGBA").save(path, "PNG"),
    "PNG": lambda path: photo(20, 20).save(path, "PNG"),
    "EXIF orientation": turned,
    "16 bits": lambda path: Image.fromarray(np.full((12, 12), 40000, dtype=np.uint16)).save(path, "PNG"),
    "text": lambda path: path.write_text("no image"),
    "empty": lambda path: path.write_bytes(b""),
    "three bytes": lambda path: path.write_bytes(b"\xff\xd8\xff"),
}


def outcome(read: Any) -> torch.Tensor | None:  # noqa: ANN401
    try:
        result: torch.Tensor = read()
    except BadImageError:
        return None
    return result


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_files_are_read_or_refused_as_pillow_does(
    tmp_path: Path, kind: str, convert: bool, mode: Literal["RGB", "L"], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    OTHERS[kind](path)
    reading = Reading(mode, convert)
    expected = outcome(lambda: with_pillow(reading, path, monkeypatch))
    assert same(outcome(lambda: reading.read(path)), expected)
    assert (expected is None) == (kind in ("16 bits", "text", "empty", "three bytes") or (
        not convert and mode != {"PNG": "RGB", "EXIF orientation": "RGB", "grey": "L"}.get(kind)
    ))  # fmt: skip


def test_rgb_without_transform_is_read_as_pillow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    rgb_without_transform(path)
    assert torch.equal(Reading().read(path), with_pillow(Reading(), path, monkeypatch))


def test_damaged_files_are_read_or_refused_as_pillow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "x.jpg"
    whole = encoded(photo(40, 56), quality=80)
    refused = 0
    for case in range(240):
        data = bytearray(whole if case % 2 else encoded(photo(40, 56), quality=80, progressive=True))
        if case % 3 == 0:
            data = data[: generator.integers(4, len(data))]
        for place in generator.integers(2, len(data), 0 if case % 3 == 0 else 1 + case % 4):
            data[place] = generator.integers(0, 256)
        path.write_bytes(data)
        expected = outcome(lambda: with_pillow(Reading(), path, monkeypatch))
        assert same(outcome(lambda: Reading().read(path)), expected), case
        refused += expected is None
    assert 60 <= refused <= 200


def test_a_file_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(photo(100, 100))[:-300])
    with pytest.raises(BadImageError, match=r"x\.jpg: expected an image but .*truncated"):
        Reading().read(path)
    with pytest.raises(BadImageError, match=r"none\.jpg"):
        Reading().read(tmp_path / "none.jpg")


def test_very_large_files_are_left_to_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(photo(100, 100)))
    for limit, bad in ((10_000, False), (4_000, True), (None, False)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert (outcome(lambda: Reading().read(path)) is None) == bad


def old_resize(path: Path, side: int, crop: int) -> NDArray[np.uint8]:
    """What version 0.1 did, in Pillow's own words."""
    image = Image.open(path)
    scale = side / min(image.size)
    width, height = (side if length == min(image.size) else int(length * scale) for length in image.size)
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - crop) / 2.0), round((height - crop) / 2.0)
    return np.asarray(whole.crop((left, top, left + crop, top + crop)))


def test_resizing_is_pillows_and_torchs_is_near(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(photo(90, 130)))
    expected = torch.from_numpy(old_resize(path, 48, 40).copy())
    assert torch.equal(Reading(resize=48, crop=40).read(path), expected)
    near = Reading(resize=48, crop=40, resizing="torch").read(path)
    difference = (near.int() - expected.int()).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.05
    png = tmp_path / "x.png"
    Image.open(path).save(png)
    assert torch.equal(Reading(resize=48, crop=40, resizing="torch").read(png), near)


@pytest.mark.parametrize("arguments", [{"resizing": "nearest", "resize": 8}, {"scaled": True}])
def test_wrong_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected `resiz"):
        Reading(**arguments)


def test_a_cache_knows_how_its_pixels_came_about(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / split / name / f"{i}.jpg").write_bytes(encoded(photo(70, 70, seed=i)))
    encoder = FrozenEncoder("test_resnet", weights="random", input_size=32)

    def open_cache(**settings: Any) -> None:
        data = ImageFolderDataModule(encoder, tmp_path, resize=32, cache_dir=tmp_path / "c", val_dir="test", **settings)
        data.open_cache("test")

    assert Reading(resize=32).identity() == "Reading(mode='RGB', convert=False, resize=32, crop=None)"  # as in 0.1
    open_cache()
    open_cache()
    for settings, said in (({"resizing": "torch"}, "resizing='torch'"), ({"scaled_decoding": True}, "scaled=True")):
        with pytest.raises(CacheMismatchError, match=rf"identity\.data\.reading: expected .* {said}"):
            open_cache(**settings)

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from datamodules import ImageFolderDataModule, ImageNetDataModule
from datamodules.folder import BadImageError, Reading
from ellips.encoders import FrozenEncoder
from ellips.types import FeatureBatch


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="random", input_size=32)


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (12, 12), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "CMYK": 4, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i:02d}.png", seed=100 * label + i)
    return tmp_path


def indices(data: ImageFolderDataModule) -> list[int]:
    return torch.cat([batch.index for batch in data.fit_dataloader()]).tolist()


def test_reads_every_image_with_its_label(root: Path, encoder: FrozenEncoder) -> None:
    data = ImageFolderDataModule(encoder, root, val_fraction=0.2, batch_size=7)
    assert (data.class_names, data.num_classes) == (["cat", "dog"], 2)
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [16, 4, 6]
    train, val = (
        {data.source(split).path(row) for row in range(len(data.source(split)))} for split in ("train", "val")
    )
    assert len(train | val) == 20
    source = data.source("test")
    for batch in data.test_dataloader():
        for image, label, index in zip(*batch, strict=True):
            path = source.path(int(index))
            assert path.parent.name == data.class_names[int(label)]
            expected = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
            torch.testing.assert_close(image, expected)


def test_a_folder_of_validation_images_is_used_where_there_is_one(root: Path, encoder: FrozenEncoder) -> None:
    for name in ("cat", "dog"):
        write_image(root / "dev" / name / "0.png")
    data = ImageFolderDataModule(encoder, root, val_dir="dev")
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [20, 2, 6]


def test_further_training_images_are_trained_on_and_nothing_else(root: Path, encoder: FrozenEncoder) -> None:
    for label, name in enumerate(("cat", "dog")):
        for i in range(5 + label):
            write_image(root / "made" / name / f"{i}.png", seed=1000 + 100 * label + i)
    plain = ImageFolderDataModule(encoder, root, val_fraction=0.2)
    for given in ("made", str(root / "made")):
        data = ImageFolderDataModule(encoder, root, val_fraction=0.2, more_train_dir=given)
        assert [len(data.source(split)) for split in ("train", "val", "test")] == [27, 4, 6]
        for split in ("val", "test"):
            assert data.source(split).identity() == plain.source(split).identity()
        source = data.source("train")
        assert source.identity() != plain.source("train").identity()
        paths = [source.path(row).resolve() for row in range(27)]
        assert paths[:16] == [plain.source("train").path(row).resolve() for row in range(16)]
        assert {path.parent.parent for path in paths[16:]} == {root / "made"}
        assert [data.class_names[label] for label in source.labels] == [path.parent.name for path in paths]
        batch = source.read([20])[0]
        assert torch.equal(batch[0].permute(1, 2, 0), torch.from_numpy(np.array(Image.open(paths[20]))))
    assert sorted(indices(data)) == list(range(27))


@pytest.mark.parametrize("name", ["test", "train", ".", "test/cat", "dev"])
def test_images_that_are_chosen_or_reported_on_are_not_trained_on(
    root: Path, encoder: FrozenEncoder, name: str
) -> None:
    (root / "dev").symlink_to(root / "test")
    data = ImageFolderDataModule(encoder, root, more_train_dir=name)
    with pytest.raises(ValueError, match="`more_train_dir` to be apart from the images of the splits"):
        data.source("train")


def test_images_are_augmented_by_whatever_torchvision_has(root: Path, encoder: FrozenEncoder) -> None:
    data = ImageFolderDataModule(encoder, root, augment=v2.RandAugment(), batch_size=20, keep_images=True)
    torch.manual_seed(0)
    (first,), (second,) = ([batch.image for batch in data.train_dataloader()] for _ in range(2))
    assert first.shape == second.shape == (18, 3, 12, 12)
    assert not torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1


def make_bad(root: Path, kind: str) -> Path:
    path = root / "train" / "cat" / "03.png"
    match kind:
        case "truncated":
            write_image(path, size=(200, 200))
            path.write_bytes(path.read_bytes()[:2000])
        case "text":
            path.write_text("no image")
        case "empty":
            path.write_bytes(b"")
        case "no ending":
            path = path.with_name("notes")
            path.write_text("no image")
        case "cmyk":
            path = write_image(path.with_name("x.jpg"), "CMYK")
        case "grey":
            write_image(path, "L")
        case "alpha":
            write_image(path, "RGBA")
        case "16 bit grey":
            Image.fromarray(np.full((12, 12), 40000, dtype=np.uint16)).save(path)
        case "16 bit colour":
            path.write_bytes(_png_with_16_bits())
    return path


def _png_with_16_bits() -> bytes:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(12 * 6) for _ in range(12)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD = ["truncated", "text", "empty", "no ending", "cmyk", "grey", "alpha", "16 bit grey", "16 bit colour"]


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_named_in_the_error(root: Path, encoder: FrozenEncoder, kind: str) -> None:
    path = make_bad(root, kind)
    data = ImageFolderDataModule(encoder, root, val_dir="test")
    with pytest.raises(BadImageError) as error:
        indices(data)
    assert str(path) in str(error.value)


def test_files_that_are_no_pictures_are_none(root: Path, encoder: FrozenEncoder) -> None:
    before = len(ImageFolderDataModule(encoder, root, val_dir="test").source("train"))
    folder = root / "train" / "cat"
    for name in ("notes.txt", "Thumbs.db", "desktop.ini", "archive.zip"):
        (folder / name).write_bytes(b"no image")
    (folder / "03.png").rename(folder / "03.picture")  # a picture by what is in it
    data = ImageFolderDataModule(encoder, root, val_dir="test")
    assert len(indices(data)) == before


def test_all_bad_images_are_named_at_once(root: Path, encoder: FrozenEncoder) -> None:
    for kind in ("truncated", "cmyk", "no ending"):
        make_bad(root, kind)
    with pytest.raises(BadImageError) as error:
        indices(ImageFolderDataModule(encoder, root, val_dir="test"))
    for part in ("3 images of", "03.png", "x.jpg", "notes", "on_bad_image: skip"):
        assert part in str(error.value)


@pytest.mark.parametrize("kind", ["truncated", "cmyk"])
def test_the_error_of_a_reading_process_names_the_file_too(root: Path, encoder: FrozenEncoder, kind: str) -> None:
    path = make_bad(root, kind)
    data = ImageFolderDataModule(encoder, root, val_dir="test", num_workers=1)
    with pytest.raises(BadImageError, match=path.name):
        indices(data)


@pytest.mark.parametrize("kind", ["grey", "cmyk", "alpha"])
def test_other_modes_are_converted_when_asked(root: Path, encoder: FrozenEncoder, kind: str) -> None:
    make_bad(root, kind)
    data = ImageFolderDataModule(encoder, root, val_dir="test", convert=True)
    assert len(indices(data)) == len(data.source("train"))


def test_16_bits_are_refused_even_then(root: Path, encoder: FrozenEncoder) -> None:
    make_bad(root, "16 bit colour")
    with pytest.raises(BadImageError, match="8 bits per channel"):
        indices(ImageFolderDataModule(encoder, root, val_dir="test", convert=True))


class Listener(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def test_step(self, batch: FeatureBatch) -> None:
        self.seen += batch.index.tolist()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cached", [False, True])
def test_skipped_files_are_listed(
    root: Path, tmp_path: Path, encoder: FrozenEncoder, workers: int, cached: bool
) -> None:
    bad = root / "test" / "dog" / "01.png"
    bad.write_text("no image")
    for attempt in (1, 2):  # the second reads from the cache, if there is one
        data = ImageFolderDataModule(
            encoder, root, on_bad_image="skip", num_workers=workers, batch_size=4, shard_rows=4,
            cache_dir=tmp_path / "cache" if cached else None,
        )  # fmt: skip
        run = tmp_path / f"run{attempt}"
        trainer = L.Trainer(
            accelerator="cpu", default_root_dir=run, logger=False, enable_progress_bar=False, enable_checkpointing=False
        )
        model = Listener()
        with pytest.warns(UserWarning, match="1 images were skipped"):
            trainer.test(model, datamodule=data, verbose=False)
        assert sorted(model.seen) == [0, 1, 2, 3, 5]
        listed = (run / "skipped_images.tsv").read_text().splitlines()
        assert len(listed) == 2
        assert listed[1].startswith(f"{bad}\t")


def test_a_cache_that_lacks_images_is_refused_where_none_may_be_skipped(
    root: Path, tmp_path: Path, encoder: FrozenEncoder
) -> None:
    (root / "test" / "dog" / "01.png").write_text("no image")
    ImageFolderDataModule(encoder, root, on_bad_image="skip", cache_dir=tmp_path / "c").open_cache("test")
    with pytest.raises(ValueError, match=r"01\.png.*were skipped"):
        ImageFolderDataModule(encoder, root, cache_dir=tmp_path / "c").open_cache("test")


def test_a_batch_of_nothing_but_bad_images_is_empty(root: Path, encoder: FrozenEncoder) -> None:
    for path in (root / "test").rglob("*.png"):
        path.write_text("no image")
    data = ImageFolderDataModule(encoder, root, on_bad_image="skip")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch.feature.shape == (0, encoder.feature_dim)


def test_different_sizes_are_named_and_cured_by_resizing(root: Path, encoder: FrozenEncoder) -> None:
    path = write_image(root / "train" / "cat" / "03.png", size=(20, 16))
    with pytest.raises(BadImageError, match=rf"{path}.*`resize` and `crop`"):
        indices(ImageFolderDataModule(encoder, root, val_dir="test"))
    data = ImageFolderDataModule(encoder, root, val_dir="test", resize=10, crop=8)
    assert next(iter(data.fit_dataloader())).image.shape == (20, 3, 8, 8)


def test_folders_that_do_not_fit_are_named(root: Path, encoder: FrozenEncoder) -> None:
    with pytest.raises(FileNotFoundError, match="sub-folder per class; it is missing"):
        ImageFolderDataModule(encoder, root / "nowhere").num_classes  # noqa: B018
    (root / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"these are empty: .*train/emu"):
        ImageFolderDataModule(encoder, root).setup("fit")
    write_image(root / "train" / "emu" / "0.png")
    with pytest.raises(ValueError, match=r"it lacks \['emu'\]"):
        ImageFolderDataModule(encoder, root).setup("test")


def test_hidden_files_are_passed_over(root: Path, encoder: FrozenEncoder) -> None:
    (root / "train" / "cat" / ".DS_Store").write_text("x")
    assert len(ImageFolderDataModule(encoder, root, val_dir="test").source("train")) == 20


@pytest.mark.parametrize("arguments", [{"mode": "CMYK"}, {"resize": 0}, {"resize": 8, "crop": 9}])
def test_wrong_reading_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Reading(**arguments)


def test_unknown_policies_are_refused(root: Path, encoder: FrozenEncoder) -> None:
    with pytest.raises(ValueError, match="on_bad_image"):
        ImageFolderDataModule(encoder, root, on_bad_image="ignore")


def test_imagenet_layout(tmp_path: Path, encoder: FrozenEncoder) -> None:
    for name in ("n01440764", "n01443537"):
        for i in range(10):
            write_image(tmp_path / "train" / name / f"{i}.JPEG", mode="L" if i == 3 else "RGB", size=(300, 280))
        write_image(tmp_path / "val" / name / "0.JPEG", size=(280, 300))
    data = ImageNetDataModule(encoder, tmp_path, val_fraction=0.2)
    assert data.class_names == ["n01440764", "n01443537"]
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [16, 4, 2]
    assert next(iter(data.test_dataloader())).image.shape == (2, 3, 224, 224)
    assert len(indices(data)) == 16  # grey ones among them
    write_image(tmp_path / "train" / "dog" / "0.JPEG")
    with pytest.raises(ValueError, match="WordNet id"):
        ImageNetDataModule(encoder, tmp_path).class_names  # noqa: B018

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from datamodules import CIFAR10DataModule
from ellips.encoders import FrozenEncoder

PER_FILE = 40
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 as it lies on disk, with fewer pictures: the same files, pickles and checksums of them."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    sums: dict[str, list[list[str]]] = {}
    for attribute in ("train_list", "test_list"):
        sums[attribute] = []
        for name, _ in getattr(CIFAR10, attribute):
            data = generator.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
            content = {"data": data, "labels": [i % 10 for i in range(PER_FILE)], "batch_label": name, "filenames": []}
            sums[attribute].append([name, write(name, content)])
    meta = write("batches.meta", {"label_names": NAMES, "num_cases_per_batch": PER_FILE, "num_vis": 3072})
    for attribute, value in sums.items():
        monkeypatch.setattr(CIFAR10, attribute, value)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return tmp_path


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="random", input_size=32)


def test_reads_the_format_and_splits_the_training_images(root: Path, encoder: FrozenEncoder) -> None:
    data = CIFAR10DataModule(encoder, root, val_fraction=0.2)
    assert data.class_names == NAMES
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [160, 40, 40]
    assert np.bincount(data.source("val").labels).tolist() == [4] * 10
    everything = CIFAR10(root, train=True)
    images = torch.cat([data.source(split).read(range(len(data.source(split))))[0] for split in ("train", "val")])
    expected = torch.from_numpy(everything.data).permute(0, 3, 1, 2)
    assert {image.numpy().tobytes() for image in images} == {image.contiguous().numpy().tobytes() for image in expected}
    batch = next(iter(data.test_dataloader()))
    assert batch.image.shape == (40, 3, 32, 32)
    assert batch.label.tolist() == [i % 10 for i in range(40)]
    assert float(batch.image.max()) <= 1
    features = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(features.feature, encoder(batch.image), rtol=1e-4, atol=1e-4)


def test_missing_or_damaged_files_say_what_to_do(root: Path, encoder: FrozenEncoder) -> None:
    with pytest.raises(FileNotFoundError, match="download: true"):
        CIFAR10DataModule(encoder, root / "elsewhere").setup("fit")
    with (root / CIFAR10.base_folder / "data_batch_3").open("ab") as file:
        file.write(b"!")
    with pytest.raises(FileNotFoundError, match="missing or damaged"):
        CIFAR10DataModule(encoder, root).setup("test")


def test_a_download_that_fails_says_what_to_fetch(
    tmp_path: Path, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(FileNotFoundError, match=r"no route to host.*cifar-10-python\.tar\.gz"):
        CIFAR10DataModule(encoder, tmp_path, download=True).prepare_data()
    CIFAR10DataModule(encoder, tmp_path).prepare_data()  # asked for nothing

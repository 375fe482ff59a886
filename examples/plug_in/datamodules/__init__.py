"""Data of this project: scikit-learn's digits, as (image, label, index)."""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset


class MyDigits(L.LightningDataModule):
    """Every fifth image is for the test, every fifth for validation; an image carries its position along."""

    num_classes = 10

    def setup(self, stage: str) -> None:
        found = load_digits()
        images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
        rows = torch.arange(len(images))
        self.data = TensorDataset(images, torch.tensor(found.target), rows)
        self.parts = {name: rows[rows % 5 == place].tolist() for name, place in (("val", 3), ("test", 4))}
        self.parts["train"] = rows[rows % 5 < 3].tolist()

    def loader(self, part: str, shuffle: bool = False) -> DataLoader:
        return DataLoader(Subset(self.data, self.parts[part]), batch_size=256, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

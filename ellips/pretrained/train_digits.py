"""Train the shipped encoder ``digits`` and write its weights and their record.

    python -m ellips.pretrained.train_digits                  # into this folder
    python -m ellips.pretrained.train_digits --output /some/folder

timm's ``test_resnet`` learns scikit-learn's handwritten digits from the training part of
:func:`ellips.splits.digits_part` alone, under Gaussian noise on the [0, 1] pixels: noise makes the features change
slowly with the image, so that radii in input space are large enough to be seen. One thread and deterministic kernels:
the same machine and versions give the same bytes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import timm
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from torch import Tensor, nn
from torch.nn import functional

from ellips.encoders import FrozenEncoder
from ellips.encoders.weights import SHIPPED_FOLDER, file_digest
from ellips.files import replace_file, replacing
from ellips.splits import DIGITS_FRACTIONS, DIGITS_SPLIT_SEED, digits_part
from ellips.versions import made_with

NAME: Final = "digits"
ARCHITECTURE: Final = "test_resnet"
PREPROCESSING: Final[dict[str, Any]] = {
    "in_channels": 3,
    "size": [32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
}


@dataclass(frozen=True)
class Recipe:
    """What the training depends on.

    Attributes:
        seed: Of initial weights, order and noise.
        noise: Standard deviation of the Gaussian noise on the [0, 1] pixels of the 8x8 images.
        epochs: Passes over the training part.
        batch_size: Images per step.
        learning_rate: Peak of the one-cycle schedule of AdamW.
        weight_decay: Of AdamW.
    """

    seed: int = 0
    noise: float = 0.3
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3


def train(recipe: Recipe, images: Tensor, labels: Tensor) -> FrozenEncoder:
    """Train encoder and a linear classifier together; the classifier is thrown away."""
    torch.manual_seed(recipe.seed)
    backbone = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)
    encoder = FrozenEncoder(backbone, **_encoder_arguments())
    backbone.requires_grad_(True)
    model = nn.Sequential(encoder.preprocess, backbone, nn.Linear(encoder.feature_dim, int(labels.max()) + 1))
    steps = math.ceil(len(images) / recipe.batch_size) * recipe.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    model.train()
    for epoch in range(recipe.epochs):
        for rows in torch.randperm(len(images)).split(recipe.batch_size):
            noisy = images[rows] + recipe.noise * torch.randn_like(images[rows])
            loss = functional.cross_entropy(model(noisy), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {loss.item():.4f}", flush=True)
    backbone.requires_grad_(False)
    encoder.eval()
    return encoder


def _encoder_arguments() -> dict[str, Any]:
    arguments = {key: value for key, value in PREPROCESSING.items() if key != "size"}
    return {**arguments, "input_size": tuple(PREPROCESSING["size"])}


def validation_accuracy(encoder: FrozenEncoder) -> dict[str, float]:
    """Accuracy on the validation part of Gaussians (scikit-learn's QDA) fitted to the training part's features."""
    features = {part: (encoder.encode(images).numpy(), labels.numpy()) for part, (images, labels) in _fitting_parts()}
    (x, y), (x_val, y_val) = features["train"], features["val"]
    pca = PCA(16, random_state=0).fit(x)
    qda = QuadraticDiscriminantAnalysis(reg_param=0.1)
    return {
        "qda_shrinkage_0.1": float(qda.fit(x, y).score(x_val, y_val)),
        "qda_shrinkage_0.1_of_16_principal_components": float(
            qda.fit(pca.transform(x), y).score(pca.transform(x_val), y_val)
        ),
    }


def _fitting_parts() -> list[tuple[str, tuple[Tensor, Tensor]]]:
    return [(part, digits_part(part)) for part in ("train", "val")]


def write(encoder: FrozenEncoder, recipe: Recipe, folder: Path) -> Path:
    """Write ``digits.safetensors`` and ``digits.json`` into a folder and return the weights' path."""
    path = folder / f"{NAME}.safetensors"
    with replacing(path) as partial:
        save_file({name: value.contiguous() for name, value in encoder.backbone.state_dict().items()}, partial)
    record = {
        "name": NAME,
        "architecture": ARCHITECTURE,
        "preprocessing": PREPROCESSING,
        "sha256": file_digest(path),
        "command": "python -m ellips.pretrained.train_digits"
        + (f" --epochs {recipe.epochs}" if recipe.epochs != Recipe.epochs else ""),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "recipe": asdict(recipe),
        "data": {
            "source": "sklearn.datasets.load_digits",
            "part": "train",
            "images": len(digits_part("train")[0]),
            "split_seed": DIGITS_SPLIT_SEED,
            "fractions": dict(DIGITS_FRACTIONS),
        },
        "validation_accuracy": validation_accuracy(encoder),
        "made_with": made_with("torch", "timm"),
    }
    replace_file(folder / f"{NAME}.json", json.dumps(record, indent=2) + "\n")
    return path


def main(arguments: list[str] | None = None) -> Path:
    """Train, write, and say what came out."""
    parser = argparse.ArgumentParser(description="Train the shipped encoder 'digits'.")
    parser.add_argument("--output", type=Path, default=SHIPPED_FOLDER, help="folder for the weights and their record")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="fewer for a trial")
    options = parser.parse_args(arguments)
    recipe = Recipe(epochs=options.epochs)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)  # sums are taken in another order with more, and then the last bits differ
    torch.use_deterministic_algorithms(True)
    try:
        encoder = train(recipe, *digits_part("train"))
        path = write(encoder, recipe, options.output)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    print(f"{path}: sha256 {file_digest(path)}, validation accuracy {validation_accuracy(encoder)}")
    return path


if __name__ == "__main__":
    main()

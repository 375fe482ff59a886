"""What each process of another project does that certifies its images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks import CertificationCallback, GaussianityCallback
from ellips.lipschitz import JacobianNorm
from ellips.types import HeadOutput
from tests.callbacks.blobs import Blobs, Module

SIZE = 7
"""Not a multiple of two, so that Lightning's DistributedSampler pads."""


def evaluate(folder: Path, **options: Any) -> dict[str, Any]:
    """Test on shared images, then on images that one process has alone, and return what was logged and seen."""
    certification = CertificationCallback(certifiers=[JacobianNorm()], input_radii=[0.25])  # latent ones: of the data
    gaussianity = GaussianityCallback([0.25], num_samples=50)
    seen: list[int] = []

    class Remember(L.Callback):
        def on_test_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: HeadOutput, *rest: object
        ) -> None:
            seen.extend(outputs.index.tolist())

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    callbacks = [certification, gaussianity, Remember()]
    trainer = L.Trainer(accelerator="cpu", default_root_dir=folder, callbacks=callbacks, **quiet, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        shared = trainer.test(Module(), Blobs(SIZE), verbose=False)[0]
    result: dict[str, Any] = {
        "said": [str(warning.message) for warning in said],
        "shared": shared,
        "indices": list(seen),
        "world": trainer.world_size,
    }
    seen.clear()
    with warnings.catch_warnings():  # few images, and in one process none: both are said again
        warnings.simplefilter("ignore")
        result["alone"] = trainer.test(Module(), Blobs(SIZE, here=trainer.is_global_zero), verbose=False)[0]
    result["indices alone"], result["rank"] = list(seen), trainer.global_rank
    result["radii"] = certification.state_dict()["radii"]["latent"]
    return result


def evaluate_together(folder: Path, devices: int) -> None:
    """Evaluate as one of several processes, and write down what this one saw."""
    result = evaluate(folder, devices=devices, strategy="ddp")
    torch.save(result, folder / f"rank{result['rank']}.pt")

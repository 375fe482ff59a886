"""Train a 1-Lipschitz encoder: ``python train_encoder.py fit --config configs/encoders/digits_lipschitz.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from lightning_modules.lipschitz_encoder import LipschitzEncoderTraining
from train import RUNS, EllipsCLI, KeepConfig


class EncoderCLI(EllipsCLI):
    """The run folders of ``train.py``, for a module that takes images rather than features."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name, and take the class count from the data."""
        parser.add_argument("--name", type=str, default="encoder", help="Run folder: everything goes to runs/<name>/.")
        parser.link_arguments("name", "trainer.default_root_dir", compute_fn=lambda name: str(RUNS / name))
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")


def main(args: Sequence[str] | None = None) -> EncoderCLI:
    """Run one subcommand: fit or validate.

    Args:
        args: The command line without the program's name; None: that of this process.

    Returns:
        The finished command, with ``trainer``, ``model`` and ``datamodule``.
    """
    options: Any = None if args is None else list(args)
    return EncoderCLI(
        LipschitzEncoderTraining,
        L.LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=KeepConfig,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=options,
    )


if __name__ == "__main__":
    main()

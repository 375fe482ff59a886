"""Train a 1-Lipschitz encoder: ``python train_encoder.py fit --config configs/encoders/digits_lipschitz.yaml``."""

from __future__ import annotations

from collections.abc import Sequence

from ellips.distributed import close_process_group
from lightning_modules.lipschitz_encoder import LipschitzEncoderTraining
from train import RunFolderCLI, run


class EncoderCLI(RunFolderCLI):
    """The command line of :class:`LipschitzEncoderTraining`, which takes images."""

    default_name = "encoder"


def main(args: Sequence[str] | None = None) -> RunFolderCLI:
    """Fit or validate the encoder; see :func:`train.run`."""
    return run(EncoderCLI, LipschitzEncoderTraining, args)


if __name__ == "__main__":
    main()
    close_process_group()

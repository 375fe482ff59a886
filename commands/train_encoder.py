"""``train-encoder``: train a 1-Lipschitz encoder."""

from __future__ import annotations

from collections.abc import Sequence

from ellips.lightning_modules import LipschitzEncoderTraining

from .training import RunFolderCLI, run


class EncoderCLI(RunFolderCLI):
    """The command line of :class:`LipschitzEncoderTraining`, which takes images."""

    default_name = "encoder"


def train_encoder(args: Sequence[str] | None = None) -> RunFolderCLI:
    """Fit or validate the encoder; see :func:`ellips.commands.training.run`."""
    return run(EncoderCLI, LipschitzEncoderTraining, args)


def main(args: Sequence[str] | None = None) -> int:
    """Fit or validate the encoder, and return the exit code."""
    train_encoder(args)
    return 0

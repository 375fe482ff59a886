"""``train-encoder``: train an encoder, or a denoiser to stand in front of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ellips.files import RunFolder
from ellips.lightning_modules import EncoderTraining, LipschitzEncoderTraining

from .training import RunFolderCLI, run

_WHERE_NONE_IS_NAMED = f"ellips.lightning_modules.{LipschitzEncoderTraining.__qualname__}"
_SUBCOMMANDS = ("fit", "validate")
_DESCRIPTION = (
    "Subcommands: fit and validate. Train an encoder, on noise or 1-Lipschitz, or a denoiser; model.class_path says "
    "which. `ellips train-encoder fit --config FILE` with a file of configs/encoders/."
)


class EncoderCLI(RunFolderCLI):
    """The command line of every :class:`EncoderTraining`, which take images.

    ``model`` names one by its ``class_path``. Without it, it is the 1-Lipschitz encoder's, which once was the only one.
    """

    default_name = "encoder"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name those that a training of an encoder has."""
        return {name: hidden for name, hidden in LightningCLI.subcommands().items() if name in _SUBCOMMANDS}

    classes_to = "model.init_args.num_classes"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Say which training it is where no other is named."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"model": {"class_path": _WHERE_NONE_IS_NAMED}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 - Lightning's
        """Look first which training is named: another one would keep the default's arguments where both have them."""
        given = [arg for arg in (sys.argv[1:] if args is None else args) if not arg.startswith("--print_config")]
        config = parser.parse_args(given)
        if config[config.subcommand].model.class_path != _WHERE_NONE_IS_NAMED:
            for subparser in self._subcommand_parsers.values():
                subparser.set_defaults({"model": None})
        super().parse_arguments(parser, args)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer, with a checkpoint after every epoch where the configuration names none."""
        config = self.config_init[self.subcommand].trainer
        callbacks = list(config.callbacks or [])
        wanted = config.enable_checkpointing is not False and not config.fast_dev_run
        if wanted and not any(isinstance(callback, Checkpoint) for callback in callbacks):
            callbacks.append(
                ModelCheckpoint(filename=RunFolder.LAST, save_on_train_epoch_end=True, enable_version_counter=False)
            )
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)


def train_encoder(args: Sequence[str] | None = None) -> RunFolderCLI:
    """Fit or validate the encoder; see :func:`ellips.commands.training.run`."""
    told = {"prog": "ellips train-encoder", "description": _DESCRIPTION}
    return run(EncoderCLI, EncoderTraining, args, subclass_mode_model=True, parser_kwargs=told)


def main(args: Sequence[str] | None = None) -> int:
    """Fit or validate the encoder, and return the exit code."""
    train_encoder(args)
    return 0

"""``fit``, ``validate``, ``test``, ``predict``: LightningCLI with run folders, and callbacks that need no naming."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ellips.callbacks import AtomicCheckpointIO, CertificationCallback
from ellips.checkpoints import load_checkpoint
from ellips.files import RUNS, RunFolder, replace_file
from ellips.lightning_modules import GenEllips
from ellips.types import Series
from ellips.validation import at_least

from .limits import limit_configurations
from .messages import Brief
from .processes import codes_of_signals
from .trust import check_hyperparameters


class TrainingParser(Brief, LightningArgumentParser):
    """Lightning's parser with short messages."""


class KeepConfig(SaveConfigCallback):
    """Saves the configuration of a fit in its run folder, whatever the logger, and never overwrites one."""

    kept: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save at the start of a fit; a resumed fit gets a numbered file beside the first."""
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.kept = Path(trainer.default_root_dir) / self.config_filename
            text = self.parser.dump(self.config, skip_unset=False)
            replace_file(self.kept, text)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave a name free that was taken by a start that failed: one without a checkpoint to go on from."""
        if self.kept is not None and not RunFolder(self.kept.parent).has_checkpoint():
            self.kept.unlink(missing_ok=True)


class RunFolderCLI(LightningCLI):
    """LightningCLI with run folders: everything of a run lies under ``runs/<name>/``."""

    default_name = "default"
    classes_to = "model.num_classes"  # where the number of classes goes

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name, and take the class count from the data."""
        parser.add_argument(
            "--name", type=str, default=self.default_name, help="Run folder: everything goes to runs/<name>/."
        )
        parser.link_arguments("name", "trainer.default_root_dir", compute_fn=lambda name: str(RUNS / name))
        parser.link_arguments("data.num_classes", self.classes_to, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 - Lightning's
        """Parse, and look at the settings that Lightning takes from a checkpoint before it imports what they name."""
        with warnings.catch_warnings():
            # It is this program's own command line that is handed on, without the command's name.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)
        subcommand = self.config.get("subcommand")
        config = self.config[subcommand] if subcommand else self.config
        path = config.get("ckpt_path")
        if path and Path(path).is_file():
            check_hyperparameters(load_checkpoint(path), config.get("model"), path)
        elif path and "://" in path:
            raise ValueError(f"Expected a checkpoint on this machine but got {path}; download it and give its path.")

    def before_instantiate_classes(self) -> None:
        """Refuse to overwrite a run, and log into its folder unless the configuration names another logger."""
        config = self.config[self.subcommand]
        folder = RunFolder.named(config.name)
        at_least(1, check_val_every_n_epoch=config.trainer.check_val_every_n_epoch)  # Lightning divides by it
        if self.subcommand == "fit":
            if config.ckpt_path == "last":
                config.ckpt_path = str(folder.requeued() or "last")
            found = folder.configs()
            if found or folder.has_checkpoint():
                if not config.ckpt_path:
                    raise SystemExit(
                        f"{folder.path} already holds a run. Give this one another --name, go on with the old one "
                        "(--ckpt_path last), or delete the folder."
                    )
                if found:
                    self.save_config_kwargs["config_filename"] = f"config-{len(found) + 1}.yaml"
            _set_aside(folder.metrics)
        elif config.ckpt_path is None:
            config.ckpt_path = str(folder.checkpoint())
        if config.trainer.logger is None:
            version = "" if self.subcommand == "fit" else self.subcommand
            arguments = {"save_dir": str(RUNS), "name": config.name, "version": version}
            logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": arguments}
            self.config = self.parser.parse_object({self.subcommand: {"trainer": {"logger": logger}}}, self.config)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer; it writes checkpoints whole or not at all, unless the configuration says how."""
        given = self.config_init[self.subcommand].trainer.plugins
        plugins = [] if given is None else given if isinstance(given, list) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        return super().instantiate_trainer(plugins=plugins, **kwargs)

    def after_instantiate_classes(self) -> None:
        """Keep checkpoints in the run folder, for every subcommand alike, unless the configuration says where."""
        folder = RunFolder.named(self.config[self.subcommand].name)
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder.checkpoints)


@rank_zero_only
def _set_aside(path: Path) -> None:
    """Rename a file that a resumed run would overwrite to the first free ``stem-N.suffix``."""
    if path.exists():
        number = next(i for i in range(1, 10**6) if not path.with_stem(f"{path.stem}-{i}").exists())
        path.rename(path.with_stem(f"{path.stem}-{number}"))


class EllipsCLI(RunFolderCLI):
    """The command line of :class:`GenEllips`, which takes features."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the features' width from the data, too."""
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.feature_dim", "model.in_features", apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer, with certification and a checkpoint where the configuration names none."""
        config = self.config_init[self.subcommand].trainer
        checkpoint = config.enable_checkpointing is not False and not config.fast_dev_run
        callbacks = with_defaults(config.callbacks or [], checkpoint=checkpoint)
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)


def with_defaults(given: Sequence[L.Callback], *, checkpoint: bool = True) -> list[L.Callback]:
    """Add what a run cannot do without to the callbacks that its configuration names.

    Args:
        given: What is named.
        checkpoint: Whether checkpoints are wanted.

    Returns:
        Those, a :class:`CertificationCallback` if there is none among them, and, if there is no checkpoint among them,
        one that keeps ``best.ckpt``, by the mean radius in a unit that does not depend on the latents' scale, and one
        that keeps ``last.ckpt``, after every epoch.
    """
    callbacks = list(given)
    certification = next((c for c in callbacks if isinstance(c, CertificationCallback)), None)
    if certification is None:
        certification = CertificationCallback()
        callbacks.append(certification)
    if checkpoint and not any(isinstance(c, Checkpoint) for c in callbacks):
        series = Series("latent", certification.methods[-1])
        monitor = f"val/relative_radius/{series.name}"
        # `save_last` writes when the best was written and where nothing is trained, but not after every epoch.
        callbacks += [
            ModelCheckpoint(
                filename=RunFolder.BEST, monitor=monitor, mode="max", save_last=True, enable_version_counter=False
            ),
            ModelCheckpoint(filename=RunFolder.LAST, save_on_train_epoch_end=True, enable_version_counter=False),
        ]
    return callbacks


def run(
    command: type[RunFolderCLI],
    module: type[L.LightningModule],
    args: Sequence[str] | None,
    *,
    subclass_mode_model: bool = False,
    parser_kwargs: dict[str, Any] | None = None,
) -> RunFolderCLI:
    """Run one subcommand: fit, validate, test or predict.

    Args:
        command: The command line.
        module: What is trained.
        args: The command line without the program's name; None: that of this process.
        subclass_mode_model: Whether the configuration names a subclass of ``module`` by its ``class_path``.
        parser_kwargs: Of the parser, such as the name of the program.

    Returns:
        The finished command, with ``trainer``, ``model`` and ``datamodule``.

    Raises:
        SystemExit: With 128 + the signal's number after SIGTERM or SIGINT; ``--ckpt_path last`` goes on.
    """
    limit_configurations()
    options: Any = None if args is None else list(args)
    with codes_of_signals():
        return command(
            module,
            L.LightningDataModule,
            subclass_mode_model=subclass_mode_model,
            subclass_mode_data=True,
            save_config_callback=KeepConfig,
            parser_class=TrainingParser,
            parser_kwargs=parser_kwargs,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=options,
        )


def train(args: Sequence[str] | None = None) -> RunFolderCLI:
    """Train, validate or test the classifier; see :func:`run`."""
    return run(EllipsCLI, GenEllips, args)


def main(args: Sequence[str] | None = None) -> int:
    """Train, validate or test the classifier, and return the exit code."""
    train(args)
    return 0

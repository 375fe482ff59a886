"""Train, validate, test: ``python train.py fit --config configs/digits.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ellips.distributed import close_process_group
from lightning_modules import GenEllips

RUNS = Path("runs")


class KeepConfig(SaveConfigCallback):
    """Saves the configuration of a fit in its run folder and never overwrites one."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save at the start of a fit; a resumed fit gets a numbered file beside the first."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class RunFolderCLI(LightningCLI):
    """LightningCLI with run folders: everything of a run lies under ``runs/<name>/``."""

    default_name = "default"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name, and take the class count from the data."""
        parser.add_argument(
            "--name", type=str, default=self.default_name, help="Run folder: everything goes to runs/<name>/."
        )
        parser.link_arguments("name", "trainer.default_root_dir", compute_fn=lambda name: str(RUNS / name))
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Refuse to overwrite a run, and log into its folder unless the configuration names another logger."""
        config = self.config[self.subcommand]
        folder = RUNS / config.name
        if self.subcommand == "fit":
            if config.ckpt_path == "last":
                config.ckpt_path = _newest(folder) or "last"
            files = [folder / "config.yaml", *sorted(folder.glob("config-*.yaml"))]
            if files[0].exists():
                if not config.ckpt_path:
                    raise SystemExit(
                        f"{folder} already holds a run. Give this one another --name, go on with the old one "
                        "(--ckpt_path last), or delete the folder."
                    )
                self.save_config_kwargs["config_filename"] = f"config-{len(files) + 1}.yaml"
            _set_aside(folder / "metrics.csv")
        if config.trainer.logger is None:
            version = "" if self.subcommand == "fit" else self.subcommand
            arguments = {"save_dir": str(RUNS), "name": config.name, "version": version}
            logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": arguments}
            self.config = self.parser.parse_object({self.subcommand: {"trainer": {"logger": logger}}}, self.config)

    def after_instantiate_classes(self) -> None:
        """Keep checkpoints in the run folder, for every subcommand alike, unless the configuration says where."""
        folder = RUNS / self.config[self.subcommand].name / "checkpoints"
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder)


def _newest(folder: Path) -> str | None:
    """Return the checkpoint that SLURM's requeueing left, if it is newer than the run's last."""
    left = [*folder.glob("hpc_ckpt_*.ckpt"), *folder.glob("checkpoints/last*.ckpt")]
    newest = max(left, key=lambda path: path.stat().st_mtime_ns, default=None)
    return str(newest) if newest is not None and newest.parent == folder else None


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


def run(command: type[RunFolderCLI], module: type[L.LightningModule], args: Sequence[str] | None) -> RunFolderCLI:
    """Run one subcommand: fit, validate, test or predict.

    Args:
        command: The command line.
        module: What is trained.
        args: The command line without the program's name; None: that of this process.

    Returns:
        The finished command, with ``trainer``, ``model`` and ``datamodule``.
    """
    options: Any = None if args is None else list(args)
    return command(
        module,
        L.LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=KeepConfig,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=options,
    )


def main(args: Sequence[str] | None = None) -> RunFolderCLI:
    """Train, validate or test the classifier; see :func:`run`."""
    return run(EllipsCLI, GenEllips, args)


if __name__ == "__main__":
    main()
    close_process_group()

"""``encode``: fill the feature cache ahead of time, ``ellips encode --config configs/cifar10.yaml``.

Reads the ``data`` section of a training configuration, encodes every image once, noisy copies included, and writes the
features to its ``cache_dir``. ``--config`` may be given more than once, later files over earlier ones; ``--data.*``
overrides entries, e.g. ``--data.root /data/imagenet``. Interrupted, it goes on where it was. With ``--devices 8`` (and
under SLURM ``--num_nodes 4``) several processes share the work.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ellips.datamodules import EncodedDataModule, Part
from ellips.files import read_configuration

from .messages import Parser
from .processes import add_processes, launch


def build(arguments: Sequence[str] | None = None) -> tuple[Any, EncodedDataModule]:
    """Read the command line and the configuration that it names.

    Args:
        arguments: The command line without the program's name; None: that of this process.

    Returns:
        The options, and the datamodule.

    Raises:
        ValueError: If the configuration has no ``data`` section or that has no ``cache_dir``.
    """
    parser = Parser(prog="ellips encode", description="Fill the feature cache ahead of time.")
    parser.add_argument("--config", type=list[Path], help="training configurations, each with a --config of its own")
    parser.add_argument("--splits", type=list[Part] | None, default=None, help="what to encode; null: all there is")
    add_processes(parser)
    parser.add_subclass_arguments(EncodedDataModule, "data", required=False)
    paths, rest = _config_paths(arguments)
    settings = _read_configs(paths)
    parser.set_defaults({"config": paths, **({"data": settings["data"]} if "data" in settings else {})})
    options = parser.parse_args(rest)
    if options.get("data") is None:
        raise ValueError(
            f"Expected `--config` to name a configuration with a `data` section but got {[str(p) for p in paths]} with "
            f"{sorted(settings)}."
        )
    module: EncodedDataModule = parser.instantiate(options).data
    if module.cache_dir is None:
        raise ValueError(
            "Expected the data section to have a `cache_dir`; give one, e.g. --data.cache_dir cache/cifar10."
        )
    return options, module


def _config_paths(arguments: Sequence[str] | None) -> tuple[list[Path], list[str]]:
    # Ahead of the parser proper, because the configurations hold that one's defaults.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path, action="append", default=[])
    known, rest = early.parse_known_args(None if arguments is None else list(arguments))
    return known.config, rest


def _read_configs(paths: Sequence[Path]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"Expected `--config` to be a file but got {path}.")
        settings = _over(settings, read_configuration(path))
    return settings


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of both, those of ``above`` where both have one that is no section."""
    sections = {k for k in above if isinstance(above[k], dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **{k: _over(below[k], above[k]) for k in sections}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode, and say how fast it went."""
    options, module = build(arguments)
    fabric = launch(options)
    module.prepare_data()
    for split in module.parts if options.splits is None else options.splits:
        start = time.perf_counter()
        cache = module.open_cache(
            split, device=fabric.device, processes=(fabric.world_size, fabric.global_rank), barrier=fabric.barrier
        )
        seconds = time.perf_counter() - start
        fabric.print(f"{split}: {len(cache):,} images in {cache.folder}, {len(cache) / seconds:,.0f} images/s")
    if fabric.is_global_zero:
        module.teardown("predict")

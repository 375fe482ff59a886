"""``encode``: fill the feature cache ahead of time, ``ellips encode --config configs/cifar10.yaml``.

Reads the ``data`` section of a training configuration, encodes every image once and writes the features to its
``cache_dir``; ``--data.*`` overrides entries, e.g. ``--data.root /data/imagenet``. Interrupted, it goes on where it
was. With ``--devices 8`` (and under SLURM ``--num_nodes 4``) several processes share the work.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentParser

from ellips.datamodules import EncodedDataModule, Part, encoding_precision


def build(arguments: Sequence[str] | None = None) -> tuple[Any, EncodedDataModule]:
    """Read the command line and the configuration that it names.

    Args:
        arguments: The command line without the program's name; None: that of this process.

    Returns:
        The options, and the datamodule under the precision that the configuration's trainer would have.

    Raises:
        ValueError: If the configuration has no ``data`` section or that has no ``cache_dir``.
    """
    parser = ArgumentParser(prog="ellips encode", description="Fill the feature cache ahead of time.")
    parser.add_argument("--config", type=Path, required=True, help="a training configuration")
    parser.add_argument("--splits", type=list[Part] | None, default=None, help="what to encode; null: all there is")
    parser.add_argument("--accelerator", type=str, default="auto", help="as in Lightning: auto, cpu, cuda")
    parser.add_argument("--devices", type=int, default=1, help="processes per machine")
    parser.add_argument("--num_nodes", type=int, default=1, help="machines")
    parser.add_subclass_arguments(EncodedDataModule, "data", required=False)
    settings = _read_config(arguments)
    if "data" in settings:
        parser.set_defaults({"data": settings["data"]})
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.get("data") is None:
        raise ValueError(f"Expected {options.config} to have a `data` section but it has {sorted(settings)}.")
    module: EncodedDataModule = parser.instantiate(options).data
    if module.cache_dir is None:
        raise ValueError(
            "Expected the data section to have a `cache_dir`; give one, e.g. --data.cache_dir cache/cifar10."
        )
    if module.precision is None:
        module.precision = encoding_precision((settings.get("trainer") or {}).get("precision", "32-true"))
    return options, module


def _read_config(arguments: Sequence[str] | None) -> dict[str, Any]:
    # Ahead of the parser proper, because the configuration holds that one's defaults.
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--config", type=Path)
    path = early.parse_known_args(arguments)[0].config
    if path is None:
        return {}
    if not path.is_file():
        raise FileNotFoundError(f"Expected `--config` to be a file but got {path}.")
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode, and say how fast it went."""
    options, module = build(arguments)
    fabric = L.Fabric(accelerator=options.accelerator, devices=options.devices, num_nodes=options.num_nodes)
    fabric.launch()
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

"""``plan``: what a fit, its certification and its audit will need, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.console import Console

from ellips.audit import AttackSettings
from ellips.datamodules import PARTS, EncodedDataModule
from ellips.files import replace_file
from ellips.input_certifiers import as_certifier, series_of
from ellips.lightning_modules import GenEllips
from ellips.planning import (
    FLOAT32,
    Cost,
    FitPlan,
    Images,
    Work,
    audit_work,
    cache_bytes,
    certifier_cost,
    fit_flops,
    head_sizes,
    outline,
    parameter_count,
    projector_numbers,
    search_flops,
    searched_by,
    show_plan,
    stage_entry,
    training_flops,
)
from ellips.validation import at_least, positive

from .certify import certify
from .limits import limit_configurations
from .messages import Parser

DESCRIPTION = """Say what a fit, its certification and its audit need, before anything runs.

Takes the configurations of `ellips fit` and `ellips certify`, all in a row. Images are counted, not read; no weights
are fetched. Where the data are elsewhere, say --counts '{train: 1268355, val: 12812, test: 50000, classes: 1000}'.
Hours are those of the encoder at --images_per_second and, with --gigaflops, of projector and Gaussians besides.
"""


def plan_parser() -> ArgumentParser:
    """Return the command's parser: what `fit` and `certify` take, and what a plan needs besides."""
    limit_configurations()
    parser = Parser(prog="ellips plan", description=DESCRIPTION)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file; several are read in turn.")
    parser.add_function_arguments(certify, skip={"hardware", "config"})
    parser.add_class_arguments(L.Trainer, "trainer", instantiate=False)
    parser.add_class_arguments(GenEllips, "model", skip={"in_features", "num_classes"}, instantiate=False)
    parser.add_class_arguments(AttackSettings, "attack", help="How hard `ellips audit` attacks.")
    parser.add_argument("--weights_only", type=Any, help="Of training; not used.")
    parser.add_argument("--images_per_second", type=float | None, default=None, help="Forward passes of one process.")
    parser.add_argument("--gigaflops", type=float | None, default=None, help="Of one process, for other hours.")
    parser.add_argument("--processes", type=int | None, default=None, help="GPUs; null: as the trainer's settings say.")
    parser.add_argument("--counts", type=dict[str, int], default={}, help="Images of train, val and test; classes.")
    parser.add_argument("--feature_dim", type=int | None, default=None, help="Of an encoder that is no timm model.")
    parser.add_argument("--vote_share", type=float, default=0.95, help="Winner's share of votes in what is expected.")
    parser.add_argument("--json", type=Path | None, default=None, help="File for the numbers.")
    return parser


def count(data: EncodedDataModule, counts: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Return the rows that are encoded of each part, noisy copies included, and the number of classes."""
    if not counts:
        return {part: len(data.image_dataset(part)) for part in data.parts}, data.num_classes
    known = {"train", "val", "test", "classes"}
    if unknown := sorted(counts.keys() - known):
        raise ValueError(f"Expected `counts` of {sorted(known)} but got {unknown}.")
    at_least(0, **counts)
    missing = known - counts.keys()
    if missing:
        raise ValueError(f"Expected `counts` of train, val, test and classes but got none of {sorted(missing)}.")
    noisy = data.noisy_copies
    images = {part: counts["val" if part == "votes" else part] for part in PARTS if part in data.parts}
    return {p: n * ((noisy and noisy.count(p)) or 1) for p, n in images.items()}, counts["classes"]


def fit_plan(config: Namespace, data: EncodedDataModule, rows: Mapping[str, int], processes: int) -> FitPlan:
    """Return the settings of the fit that decide how often images are encoded."""
    model, trainer = config.model, config.trainer
    sanity = 2 if trainer.num_sanity_val_steps is None else trainer.num_sanity_val_steps
    per_batch = -(-rows["val"] // -(-rows["val"] // data.eval_batch_size))
    given = (model.pooling, model.shrinkage, model.covariance_estimator) != (None, None, "moments")
    search, tried = searched_by(model.regularization, given=given)
    return FitPlan(
        rows={part: n for part, n in rows.items() if part != "test"},
        epochs=trainer.max_epochs if trainer.max_epochs is not None else 1000,  # Lightning's own
        validate_every=trainer.check_val_every_n_epoch or 1,
        cached=data.cache_dir is not None,
        fresh=data.augment is not None and data.noisy_copies is None,
        trained=model.latent_dim is not None or model.train_mixture,
        train_mixture=model.train_mixture,
        fitted_first=any(loss.init_args.get("gaussians") == "fitted" for loss in model.objective or []),
        sanity_rows=rows["val"] if sanity == -1 else min(sanity * per_batch, rows["val"]),
        search=search,
        tried=tried,
        processes=processes,
    )


def stages(
    config: Namespace, chosen: dict[str, Any], rows: Mapping[str, int], images: Images
) -> dict[str, tuple[Cost | None, float]]:
    """Return what each stage sends through the encoder, None where it is not known, and its other operations."""
    model, fit = config.model, fit_plan(config, chosen["data"], rows, images.processes)
    parameters = projector_numbers(chosen["data"].feature_dim, model.latent_dim, model.hidden_dim)[0]
    head = (images.classes, images.latent_dim, fit.fits)
    tried = (fit.tried, rows[fit.search or "val"])
    found: dict[str, tuple[Cost | None, float]] = {
        "encode: " + ", ".join(fit.rows): (Cost.fixed(fit.encode()), 0),
        "fit: training": (Cost.fixed(fit.training()), training_flops(parameters, rows["train"], fit.epochs)),
        "fit: exact fits": (Cost.fixed(fit.fitting()), fit_flops(parameters, rows["train"], *head)),
        "fit: validation": (Cost.fixed(fit.validation()), 0),
        "fit: regularisation": (Cost.fixed(fit.regularization()), search_flops(*tried, *head)),
        "encode: test" if fit.cached else "test": (Cost.fixed(Work(rows["test"])), 0),
        "certify: latents": (Cost.fixed(Work(images.count)), 0),
    }
    certifiers = [as_certifier(given) for given in chosen["certifiers"]]
    for series, certifier in zip(series_of(certifiers, config.input_method), certifiers, strict=True):
        found[f"certify: {series.source}"] = (certifier_cost(certifier, images), 0)
        found[f"audit: {series.source}"] = (Cost.fixed(audit_work(certifier, chosen["attack"], images)), 0)
    return found


def sizes(config: Namespace, data: EncodedDataModule, rows: Mapping[str, int], images: Images) -> dict[str, int]:
    """Return bytes by what takes them."""
    model, features = config.model, data.feature_dim
    held = rows.get(fit_plan(config, data, rows, images.processes).search or "", 0) // images.processes
    held = held if model.covariance_estimator == "moments" else rows["train"]
    cached = {f"disk: cache, {p}": cache_bytes(n, features, data.cache_dtype) for p, n in rows.items()}
    return {
        **(cached if data.cache_dir is not None else {}),
        **head_sizes(
            (model.covariance_type, images.classes, images.latent_dim, model.get("rank")),
            projector_numbers(features, model.latent_dim, model.hidden_dim),
            "sgd" if model.optimization is None else model.optimization.optimizer,
            encoder_parameters=parameter_count(data.encoder),
            proofs=len(config.methods),
            train_mixture=model.train_mixture,
        ),
        "GPU: latents of a search, or of an estimator": held * images.latent_dim * FLOAT32,
        "host: a batch of images for each reader": data.batch_size * images.pixels * FLOAT32 * max(1, data.num_workers),
    }


def plan(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return the plan: bytes by what takes them, and work and hours by stage.

    Args:
        parser: Of :func:`plan_parser`.
        config: What it parsed.

    Raises:
        TypeError: If the datamodule has no encoder.
        ValueError: If the encoder's shape is not known without its weights, or numbers are missing.
    """
    given = config.data.get("init_args", {})
    if given.get("encoder") is None:
        raise TypeError(f"Expected a datamodule with an `encoder` but {config.data.class_path} has none.")
    at_least(1, processes=config.processes)
    positive(images_per_second=config.images_per_second, gigaflops=config.gigaflops)
    used = config.clone()
    for name in {key.partition(".")[0] for key in config.keys()} - {"data", "certifiers", "attack"}:
        used.pop(name)
    used.data.init_args.encoder = outline(given.encoder.init_args.as_dict(), config.feature_dim)
    chosen = parser.instantiate(used).as_dict()
    data: EncodedDataModule = chosen["data"]
    rows, classes = count(data, config.counts)
    trainer, model = config.trainer, config.model
    devices = str(trainer.devices)  # "auto", or a list of some, tells nothing of another machine
    processes = config.processes or trainer.num_nodes * (int(devices) if devices.isdecimal() else 1)
    total = config.counts[config.split] if config.counts else len(data.source(config.split))
    certified = len(range(0, total, config.skip)[: config.max])
    channels, size = data.encoder.preprocess.in_channels, data.encoder.preprocess.size or (224, 224)
    images = Images(
        count=certified,
        batches=-(-certified // config.batch_size),
        classes=classes,
        latent_dim=data.feature_dim if model.latent_dim is None else model.latent_dim,
        pixels=channels * size[0] * size[1],
        processes=processes,
        vote_share=config.vote_share,
    )
    speed, rate, work = config.images_per_second, config.gigaflops, stages(config, chosen, rows, images)
    return {
        "bytes": sizes(config, data, rows, images),
        "stages": {name: stage_entry(*both, speed, rate, processes) for name, both in work.items()},
        "settings": {"rows": rows, "images_per_second": speed, **vars(images), "feature_dim": data.feature_dim},
    }


def main(args: Sequence[str] | None = None) -> int:
    """Print the plan."""
    config = (parser := plan_parser()).parse_args(None if args is None else list(args))
    found = plan(parser, config)
    if config.json is not None:
        replace_file(config.json, json.dumps(found, indent=1) + "\n")
    show_plan(found, Console())
    return 0

"""ImageNet's size, rehearsed: everything behind the encoder with 1,000 classes in 1,024 dimensions, and a ViT-L/14.

``python -m benchmarks.scale [--quick] [--gigabytes G] [--stages NAME ...] [--json FILE]``. T is what full covariances
of all classes take, K d² float64 numbers: 8.4 GB. Every stage runs in processes of its own; its peak counts all that
they hold, Python and torch as well (Linux).

- ``pipeline``: ``train.py`` with ``configs/model/paper_imagenet.yaml`` on synthetic features, in one process and in
  two: it trains an epoch, fits, selects regularisation, certifies, writes a checkpoint, and is then resumed from it.
- ``full``: the full model, fitted, certified and checked, with as many classes as ``--gigabytes`` hold at three T.
- ``encoder``: the true vision transformer with random weights encodes a few images, and CLEVER samples around one.
- ``ddp``: bytes that a training step sends, and ``ddp_step_over_one_process``: how much slower a step is in two
  processes than in one, over the same of a projector without mixture.
- ``low_rank_...``: the ratios of :mod:`benchmarks.low_rank`, at the same K and d.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import low_rank
from benchmarks._common import make_parser, median_ratio, report, seconds
from benchmarks._scale import forget_peak, peak
from ellips import ClassMoments, Ellips
from ellips.certificates import check
from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead, keep_from_broadcasts
from ellips.lipschitz import Clever
from ellips.pipeline import ImageClassifier

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "configs" / "model" / "paper_imagenet.yaml"
FULL_PEAK = 3.0  # times T, that the full model is promised to stay within
SIZES = {"classes": 1000, "dim": 1024, "hidden": 2048, "rank": 32, "per_class": 64, "points": 512, "batch": 512}
QUICK = {"classes": 40, "dim": 32, "hidden": 48, "rank": 4, "per_class": 8, "points": 32, "batch": 80}
VIT, QUICK_VIT = "vit_large_patch14_clip_quickgelu_224", "test_vit"
ENCODED, SAMPLED = 4, (2, 4)  # images; batches and points of each for CLEVER
STAGES = ("pipeline_1", "pipeline_2", "full", "encoder", "ddp", "low_rank_memory", "low_rank")
STEPS, WARM_STEPS = 100, 4
CERTIFIED, CHECKED = 64, 4  # points of the full model


# ------------------------------------------------------------------ train.py


def pipeline(sizes: Mapping[str, int], processes: int, folder: Path) -> dict[str, Any]:
    """Train, fit, select, certify and write a checkpoint, then resume from it for another epoch."""
    found = {}
    for name, epochs, resumed in (("fit", 1, []), ("resume", 2, ["--ckpt_path", "runs/scale/checkpoints/last.ckpt"])):
        peaks = folder / f"peaks_{name}"
        command = [
            *(sys.executable, str(ROOT / "train.py"), "fit", "--config", str(MODEL), "--name", "scale"),
            *("--data", "benchmarks._scale.SyntheticFeatures"),
            *(f"--data.{key}={sizes[key]}" for key in ("classes", "dim", "per_class")),
            f"--data.batch_size={sizes['batch'] // processes}",
            *(f"--model.{key}_dim={sizes[size]}" for key, size in (("latent", "dim"), ("hidden", "hidden"))),
            *(f"--model.rank={sizes['rank']}", f"--trainer.max_epochs={epochs}"),
            *("--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu", f"--trainer.devices={processes}"),
            *("--trainer.enable_progress_bar=false", "--trainer.callbacks+=benchmarks._scale.StagePeaks"),
            *(f"--trainer.callbacks.folder={peaks}", *resumed),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)),
        }
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"Expected train.py to succeed but got {run.returncode}:\n{run.stderr[-3000:]}")
        ranks = [json.loads((peaks / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(processes)]
        found[name] = {
            stage: {
                "gigabytes": sum(rank[stage]["gigabytes"] for rank in ranks),
                "gigabytes_of_one": max(rank[stage]["gigabytes"] for rank in ranks),
                "seconds": max(rank[stage]["seconds"] for rank in ranks),
            }
            for stage in ranks[0]
        }
    checkpoint = folder / "runs" / "scale" / "checkpoints" / "last.ckpt"
    return {**found, "checkpoint_gigabytes": checkpoint.stat().st_size / 1e9}


# ------------------------------------------------------------------ the full model


def full(classes: int, dim: int) -> dict[str, Any]:
    """Fit, certify and check the full model; its memory is measured beside what the process held before."""
    size, base, found = classes * dim * dim * 8 / 1e9, peak(), {}  # type: float, float, dict[str, Any]

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        forget_peak()
        start = time.monotonic()
        yield
        taken = peak()
        found[name] = {"gigabytes": taken, "over_t": (taken - base) / size, "seconds": time.monotonic() - start}

    generator = torch.Generator().manual_seed(0)
    with stage("fit"):
        moments, centers = ClassMoments(classes, dim), torch.randn(classes, dim, generator=generator).double()
        for _ in range(4):
            drawn = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
            moments.update(centers + drawn, torch.arange(classes))
        ellips = Ellips(classes, dim, shrinkage=0.3, pooling=0.5).fit_collected(moments.held())
        del moments
    z, _ = ellips.sample(CERTIFIED, generator)
    with stage("score"):
        found["points_per_second_scoring"] = len(z) / seconds(lambda: ellips(z))
    with stage("certify"):
        certificate = ellips.certify(z)
    found["points_per_second_certifying"] = len(z) / seconds(lambda: ellips.certify(z))
    with stage("check"):
        found["proven"] = float(check(ellips, z[:CHECKED], certificate[:CHECKED]).double().mean())
    return {"classes": classes, "dim": dim, "t_gigabytes": size, **found}


# ------------------------------------------------------------------ the encoder


def encoder(model: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Encode a few images with random weights, and estimate a constant around one of them."""
    frozen = FrozenEncoder(model, weights="random")
    side = frozen.preprocess.size or (224, 224)
    images = torch.rand(ENCODED, 3, *side, generator=torch.Generator().manual_seed(0))
    forget_peak()
    with torch.no_grad():
        took = seconds(lambda: frozen(images))
    found = {"encode": {"gigabytes": peak(), "seconds": took, "images": len(images)}}
    head = EllipsHead(frozen.feature_dim, 10, min(128, sizes["dim"]), sizes["hidden"]).eval()
    source = Clever(num_batches=SAMPLED[0], num_samples=SAMPLED[1])
    chain = ImageClassifier(frozen, head).chain
    forget_peak()
    took = seconds(lambda: source(chain.latents, images[:1]))
    found["clever"] = {"gigabytes": peak(), "seconds": took, "points": SAMPLED[0] * SAMPLED[1]}
    return found


# ------------------------------------------------------------------ steps in two processes


class _Step(nn.Module):
    """A loss on latents, of a head with its mixture or of the projector alone."""

    def __init__(self, head: EllipsHead, mixture: bool) -> None:
        super().__init__()
        self.projector = head.projector
        if mixture:
            self.ellips = head.ellips
            keep_from_broadcasts(self)

    def forward(self, features: Tensor) -> Tensor:
        loss: Tensor = self.projector(features).square().mean()
        return loss


def ddp(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Time steps with and without a mixture, in one process and in two, and count the bytes that two of them send."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            queue = context.SimpleQueue()
            ranks = [context.Process(target=_steps, args=(r, world, folder, dict(sizes), queue)) for r in range(world)]
            for rank in ranks:
                rank.start()
            found[world] = queue.get()
            for rank in ranks:
                rank.join()
    # Of steps that followed each other: what else the machine does meanwhile hits both.
    dearer = {world: median_ratio(one["mixture"], one["bare"]) for world, one in found.items()}
    kinds = ("mixture", "bare")
    return {
        "seconds_per_step": {world: {k: statistics.median(found[world][k]) for k in kinds} for world in found},
        "mixture_over_bare": dearer,
        "ratio": dearer[2] / dearer[1],
        "gigabytes_sent_per_step": {k: found[2][f"{k}_bytes"] / 1e9 for k in kinds},
    }


def _steps(rank: int, world: int, folder: str, sizes: dict[str, int], queue: Any) -> None:  # noqa: ANN401 - a queue
    torch.set_num_threads(1)  # as many as the other process has
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    classes, dim = sizes["classes"], sizes["dim"]
    features = torch.randn(max(2, sizes["batch"] // 8), dim)
    steps = {}
    for kind in ("mixture", "bare"):
        head = EllipsHead(dim, classes, dim, sizes["hidden"], covariance_type="low_rank", rank=sizes["rank"])
        module = DistributedDataParallel(_Step(head, kind == "mixture"))
        steps[kind] = _make_step(module, torch.optim.SGD(module.parameters(), lr=1e-6), features)
    found: dict[str, Any] = {kind: [] for kind in steps} | {f"{kind}_bytes": [] for kind in steps}
    for number in range(WARM_STEPS + STEPS):
        for kind, step in list(steps.items())[:: 1 if number % 2 else -1]:
            dist.barrier()
            before = _bytes_sent()
            found[kind].append(seconds(step))
            dist.barrier()
            found[f"{kind}_bytes"].append(_bytes_sent() - before)
    if rank == 0:
        kept = {name: values[WARM_STEPS:] for name, values in found.items()}
        queue.put({k: statistics.median(v) if k.endswith("bytes") else v for k, v in kept.items()})
    dist.destroy_process_group()


def _make_step(module: nn.Module, optimizer: torch.optim.Optimizer, features: Tensor) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        module(features).backward()
        optimizer.step()

    return step


def _bytes_sent() -> int:
    """Bytes that this machine has sent to itself, as the processes of one machine talk to each other (Linux)."""
    line = next(line for line in Path("/proc/net/dev").read_text(encoding="utf-8").splitlines() if "lo:" in line)
    return int(re.split(r"[:\s]+", line.strip())[1])


# ------------------------------------------------------------------ all of it


def apart(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Call a function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the rehearsal and print its JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="memory that the full model may take")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what is run; an hour in all")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of which the median is taken")
    options: argparse.Namespace = parser.parse_args(args)
    sizes, model = (QUICK, QUICK_VIT) if options.quick else (SIZES, VIT)
    dim, rounds = sizes["dim"], 2 if options.quick else options.rounds
    largest = min(sizes["classes"], int(options.gigabytes * 1e9 / (FULL_PEAK * dim * dim * 8)))
    found: dict[str, Any] = {"t_gigabytes": sizes["classes"] * dim**2 * 8 / 1e9}
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "pipeline_1": lambda: _in_folder(sizes, 1),
        "pipeline_2": lambda: _in_folder(sizes, 2),
        "full": lambda: apart(full, largest, dim),
        "encoder": lambda: apart(encoder, model, sizes),
        "ddp": lambda: ddp(sizes),
        "low_rank_memory": lambda: low_rank.memory(sizes["classes"], dim, sizes["rank"]),
    }
    ratios: dict[str, float] = {}
    for name in (name for name in STAGES if name in options.stages):
        if name == "low_rank":
            measured = {key: sizes[key] for key in ("classes", "dim", "rank", "points")}
            ratios, found[name] = low_rank.measure(**measured, rounds=rounds)
        else:
            found[name] = stages[name]()
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    if "ddp" in found:
        ratios["ddp_step_over_one_process"] = found["ddp"].pop("ratio")
    return report(
        "scale",
        ratios,
        {**sizes, "encoder": model, "gigabytes": options.gigabytes, "rounds": rounds, "quick": options.quick},
        measurements=found,
        json_file=options.json,
    )


def _in_folder(sizes: Mapping[str, int], processes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return pipeline(sizes, processes, Path(folder))


if __name__ == "__main__":
    main()

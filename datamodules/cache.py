"""Features on disk: written once, in shards, and read by every later run.

A cache folder holds ``shard-00000.safetensors`` ... and ``manifest.json``. A shard is a fixed range of rows and is
encoded in batches of its own, so its bytes depend neither on which process made it nor on what was interrupted before.
Every file comes into being by renaming, so a shard that is there is whole, and whoever was interrupted goes on with the
shards that are not. What was being written when a process was killed is tidied up when the cache is complete.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ellips.checkpoints import digest_of
from ellips.encoders.weights import file_digest
from ellips.files import replacing
from ellips.types import FeatureBatch

from .manifest import (
    ANEW,
    DTYPES,
    MANIFEST,
    Plan,
    check_entries,
    check_manifest,
    read_manifest,
    shard_name,
)

_LEFTOVERS = (".*.partial*", "*.part-*")  # what a killed process was writing: `replacing`'s names, and version 0.1's


class CacheWriter:
    """Fills a cache folder; several processes may do so together, each its own shards.

    Args:
        folder: Comes into being if it is missing.
        plan: What the cache is to hold.

    Raises:
        CacheMismatchError: If the folder holds, or was begun with, something else.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        folder.mkdir(parents=True, exist_ok=True)
        check_manifest(folder, plan)
        if not (folder / MANIFEST).exists():
            self._write_manifest(complete=False, shards=[], skipped=[])

    def is_complete(self) -> bool:
        """Whether the manifest says that every shard is there."""
        return bool(read_manifest(self.folder)["complete"])

    def missing(self, world: int = 1, rank: int = 0) -> list[int]:
        """Shards that this process has yet to write."""
        return [shard for shard in range(rank, self.plan.shard_count(), world) if not self._is_written(shard)]

    def write(self, shard: int, features: Tensor, labels: Tensor, index: Tensor, files: str = "") -> None:
        """Write one shard: the readable rows of its range, in order, and a digest of the files that they are of."""
        tensors = {
            "feature": features.to("cpu", DTYPES[self.plan.dtype]).contiguous(),
            "label": labels.cpu().contiguous(),
            "index": index.cpu().contiguous(),
        }
        about = {
            "plan": f"{self.plan.digest()}:{digest_of(tensors)}:{files}"
        }  # one entry: safetensors mixes their order
        with _durably(self.folder / shard_name(shard)) as partial:
            partial.write_bytes(save(tensors, metadata=about))

    def finish(self, path_of: Callable[[int], Path | None]) -> None:
        """Write the manifest, once every shard is there; one process calls this.

        Args:
            path_of: Gives the file of an image, for the list of skipped ones.

        Raises:
            RuntimeError: If a shard is missing.
        """
        if missing := self.missing():
            raise RuntimeError(f"Expected every shard of {self.folder} to be written but {missing} are missing.")
        shards: list[dict[str, Any]] = []
        skipped: set[int] = set()
        for shard in range(self.plan.shard_count()):
            path = self.folder / shard_name(shard)
            with safe_open(path, framework="pt") as file:
                kept = file.get_tensor("index").tolist()
                files = (file.metadata() or {}).get("plan", "").split(":")[2:]
            skipped |= set(self.plan.image_range(shard)) - set(kept)
            entry = {"file": path.name, "rows": len(kept), "sha256": file_digest(path)}
            shards.append(entry | ({"files": files[0]} if files and files[0] else {}))
        listed = [{"row": row, "path": str(path_of(row))} for row in sorted(skipped)]
        for leftover in {path for pattern in _LEFTOVERS for path in self.folder.glob(pattern)}:
            leftover.unlink(missing_ok=True)
        self._write_manifest(complete=True, shards=shards, skipped=listed)

    def _is_written(self, shard: int) -> bool:
        path = self.folder / shard_name(shard)
        try:
            with safe_open(path, framework="pt") as file:
                plan, *digests = (file.metadata() or {}).get("plan", "").split(":")
                if plan != self.plan.digest():
                    return False
                held = {name: file.get_tensor(name) for name in file.keys()}
                if not digests or digests[0] == digest_of(held):  # those from before there were digests have none
                    return True
        except (FileNotFoundError, SafetensorError):
            return False
        rank_zero_warn(f"{path}: the shard was damaged since it was written; its images are encoded again.")
        return False

    def _write_manifest(self, *, complete: bool, shards: Sequence[object], skipped: Sequence[object]) -> None:
        content = {**self.plan.content(), "complete": complete, "skipped": skipped, "shards": shards}
        with _durably(self.folder / MANIFEST) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class FeatureCache:
    """A complete cache, mapped into memory: only the rows that are read are loaded.

    Args:
        folder: The cache.
        plan: What it must hold.

    Raises:
        CacheMismatchError: If it holds something else.
        FileNotFoundError: If it is missing or incomplete.
        ValueError: If a shard is not the one that the manifest describes.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        check_manifest(folder, plan)
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
        if not manifest.get("complete"):
            raise FileNotFoundError(
                f"Expected a complete feature cache in {folder} but it is missing or incomplete; fill it with "
                "`ellips encode --config ...`."
            )
        self.folder = folder
        check_entries(folder, manifest, plan)
        self.skipped: dict[int, str] = {entry["row"]: entry["path"] for entry in manifest["skipped"]}
        self._shards = [_open_shard(folder, entry) for entry in manifest["shards"]]
        self._ends = np.cumsum([len(shard["label"]) for shard in self._shards])
        self.labels = torch.cat([shard["label"] for shard in self._shards])
        self.indices = torch.cat([shard["index"] for shard in self._shards])
        self._check_copies(folder, plan.copies)
        self._check_rows(plan)

    def __len__(self) -> int:
        """Return the number of rows that have features."""
        return len(self.labels)

    def _check_rows(self, plan: Plan) -> None:
        """Refuse a cache in which images are missing, beside those that the manifest lists as skipped."""
        images = plan.rows // plan.copies
        kept = torch.ones(images, dtype=torch.bool)
        kept[[row for row in self.skipped if row in range(images)]] = False
        expected = kept.nonzero().flatten().repeat_interleave(plan.copies)
        if not torch.equal(self.indices, expected):
            raise ValueError(
                f"Expected {self.folder} to have every image but the {len(self.skipped)} that its manifest lists as "
                f"skipped, {len(expected)} rows in all, but it has others ({len(self.indices)}); {ANEW}"
            )

    def _check_copies(self, folder: Path, copies: int) -> None:
        """Refuse an image that was readable for some of its copies and not for others."""
        whole = len(self.indices) % copies == 0
        if not whole or bool((self.indices.view(-1, copies) != self.indices[::copies, None]).any()):
            raise ValueError(
                f"Expected {folder} to have all {copies} copies of every image but some are missing: a file could be "
                "read at one time and not at another; delete the cache to have it made again."
            )

    def read(self, positions: Sequence[int]) -> FeatureBatch:
        """Read features by position among the rows that have some, as float32."""
        where = np.asarray(positions)
        shards = np.searchsorted(self._ends, where, side="right")
        width = self._shards[0]["feature"].shape[1]
        features = torch.empty(len(where), width, dtype=torch.float32)  # whatever torch's default is
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            start = 0 if shard == 0 else int(self._ends[shard - 1])
            rows = torch.from_numpy(where[chosen] - start)
            features[torch.from_numpy(chosen)] = self._shards[shard]["feature"][rows].float()
        at = torch.from_numpy(where)
        return FeatureBatch(features, self.labels[at], self.indices[at])


def _open_shard(folder: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / entry["file"]
    if not path.is_file() or file_digest(path) != entry["sha256"]:
        raise ValueError(
            f"Expected {path} to have the SHA-256 {entry['sha256']} of the manifest but it is missing or was changed; "
            "delete the cache to have it made again."
        )
    with safe_open(path, framework="pt") as file:  # maps the file; pages are read when rows are
        found = {name: file.get_tensor(name) for name in ("feature", "label", "index")}
    if any(len(tensor) != entry["rows"] for tensor in found.values()):
        raise ValueError(f"Expected {path} to have {entry['rows']} rows as the manifest says but got others; {ANEW}")
    return found


@contextlib.contextmanager
def _durably(path: Path) -> Iterator[Path]:
    """Like :func:`ellips.files.replacing`, for several processes."""
    try:
        with replacing(path) as partial:
            yield partial
    except FileNotFoundError:
        if not path.exists():  # it does where another process finished the same cache and tidied up
            raise

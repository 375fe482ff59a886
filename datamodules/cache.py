"""Features on disk: written once, in shards, and read by every later run.

A cache folder holds ``shard-00000.safetensors`` ... and ``manifest.json``. A shard is a fixed range of rows and is
encoded in batches of its own, so its bytes depend neither on which process made it nor on what was interrupted before.
Every file comes into being by renaming, so a shard that is there is whole, and whoever was interrupted goes on with the
shards that are not. What was being written when a process was killed is tidied up when the cache is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ellips.checkpoints import digest_of
from ellips.encoders.weights import file_digest
from ellips.files import read_json, replacing
from ellips.types import FeatureBatch
from ellips.validation import at_least, one_of

MANIFEST: Final = "manifest.json"
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ANEW: Final = "delete the cache to have it made again."
_LEFTOVERS = (".*.partial*", "*.part-*")  # what a killed process was writing: `replacing`'s names, and version 0.1's


class CacheMismatchError(ValueError):
    """A feature cache was made from something else than what is asked for."""


@dataclass(frozen=True)
class Plan:
    """What a cache is to hold.

    Attributes:
        identity: Everything the features depend on; a cache is used only where all of it is equal.
        rows: Number of images, or of their copies, unreadable ones included.
        feature_dim: Width of the features.
        dtype: Of the stored features: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        shard_rows: Rows per shard.
        copies: Rows in a row that are of one image; the identity has to say so, too.
    """

    identity: Mapping[str, Any]
    rows: int
    feature_dim: int
    dtype: str = "float32"
    shard_rows: int = 4096
    copies: int = 1

    def __post_init__(self) -> None:
        """Check type and sizes."""
        one_of(sorted(DTYPES), cache_dtype=self.dtype)
        at_least(1, rows=self.rows, shard_rows=self.shard_rows, copies=self.copies)

    def content(self) -> dict[str, Any]:
        """The plan as the manifest states it."""
        sizes = {"rows": self.rows, "feature_dim": self.feature_dim, "shard_rows": self.shard_rows}
        return {"identity": dict(self.identity), "dtype": self.dtype, **sizes}

    def digest(self) -> str:
        """SHA-256 of :meth:`content`, which every shard carries."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()

    def shard_count(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def shard_range(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def image_range(self, shard: int) -> range:
        """The images whose rows, or some of them, a shard holds."""
        rows = self.shard_range(shard)
        return range(rows.start // self.copies, -(-rows.stop // self.copies))


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

    def write(self, shard: int, features: Tensor, labels: Tensor, index: Tensor) -> None:
        """Write one shard: the readable rows of its range, in order."""
        tensors = {
            "feature": features.to("cpu", DTYPES[self.plan.dtype]).contiguous(),
            "label": labels.cpu().contiguous(),
            "index": index.cpu().contiguous(),
        }
        about = {"plan": f"{self.plan.digest()}:{digest_of(tensors)}"}  # one entry: safetensors mixes their order
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
            skipped |= set(self.plan.image_range(shard)) - set(kept)
            shards.append({"file": path.name, "rows": len(kept), "sha256": file_digest(path)})
        listed = [{"row": row, "path": str(path_of(row))} for row in sorted(skipped)]
        for leftover in {path for pattern in _LEFTOVERS for path in self.folder.glob(pattern)}:
            leftover.unlink(missing_ok=True)
        self._write_manifest(complete=True, shards=shards, skipped=listed)

    def _is_written(self, shard: int) -> bool:
        path = self.folder / shard_name(shard)
        try:
            with safe_open(path, framework="pt") as file:
                plan, _, content = (file.metadata() or {}).get("plan", "").partition(":")
                if plan != self.plan.digest():
                    return False
                held = {name: file.get_tensor(name) for name in file.keys()}
                if content in ("", digest_of(held)):  # those from before there were digests have none
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
        _check_entries(folder, manifest, plan)
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
                f"skipped, {len(expected)} rows in all, but it has others ({len(self.indices)}); {_ANEW}"
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
        features = torch.empty(len(where), width)
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            start = 0 if shard == 0 else int(self._ends[shard - 1])
            rows = torch.from_numpy(where[chosen] - start)
            features[torch.from_numpy(chosen)] = self._shards[shard]["feature"][rows].float()
        at = torch.from_numpy(where)
        return FeatureBatch(features, self.labels[at], self.indices[at])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache folder."""
    try:
        return read_json(folder / MANIFEST)
    except ValueError as error:
        raise ValueError(f"{error} {_ANEW.capitalize()}") from error


def check_manifest(folder: Path, plan: Plan) -> None:
    """Refuse a folder that holds, or was begun with, something else than the plan.

    Raises:
        CacheMismatchError: With every entry that differs, as it is and as it should be.
    """
    if not (folder / MANIFEST).exists():
        return
    found, expected = (dict(_flat(content)) for content in (read_manifest(folder), plan.content()))
    differing = {key for key in expected if found.get(key) != expected[key]}
    differing |= {key for key in found if key.startswith("identity.") and key not in expected}
    if differing:
        lines = [f"  {key}: expected {expected.get(key)!r} but got {found.get(key)!r}" for key in sorted(differing)]
        raise CacheMismatchError(
            f"The feature cache {folder} was made from something else:\n" + "\n".join(lines) + "\n"
            "Name another cache_dir, or delete this one to have it made again."
        )


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_entries(folder: Path, manifest: Mapping[str, Any], plan: Plan) -> None:
    """Refuse a manifest that lists other shards than the plan has; their names are never taken from it."""
    try:
        listed = [(entry["file"], len(entry["sha256"]), entry["rows"]) for entry in manifest["shards"]]
        skipped = [(entry["row"], entry["path"]) for entry in manifest["skipped"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST}: expected shards and skipped images but {error!r}; {_ANEW}") from error
    names = [shard_name(shard) for shard in range(plan.shard_count())]
    if [name for name, *_ in listed] != names or not all(isinstance(row, int) for row, _ in skipped):
        found = [name for name, *_ in listed]
        raise ValueError(f"{folder / MANIFEST}: expected the shards {_few(names)} but got {_few(found)}; {_ANEW}")


def _few(names: Sequence[object]) -> str:
    return f"{list(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


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
        raise ValueError(f"Expected {path} to have {entry['rows']} rows as the manifest says but got others; {_ANEW}")
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

"""What a feature cache says of itself: its plan, and a manifest that is compared with what is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ellips.files import read_json, replace_file
from ellips.validation import at_least, one_of

MANIFEST: Final = "manifest.json"
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ANEW: Final = "delete the cache to have it made again."
TIMES: Final = "times"
"""Entry of a source's identity: digest of the times at which its files were last changed."""

_TIMES_KEY: Final = f"identity.data.{TIMES}"
_REPLACED: Final = "Image files were replaced, or changed, since they were encoded.\n"


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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache folder."""
    try:
        return read_json(folder / MANIFEST)
    except ValueError as error:
        raise ValueError(f"{error} {ANEW.capitalize()}") from error


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
    if _TIMES_KEY not in found:  # as before there were times
        differing.discard(_TIMES_KEY)
    if differing:
        lines = [f"  {key}: expected {expected.get(key)!r} but got {found.get(key)!r}" for key in sorted(differing)]
        raise CacheMismatchError(
            f"The feature cache {folder} was made from something else, as its {MANIFEST} says:\n"
            + "\n".join(lines)
            + "\n"
            + (_REPLACED if differing == {_TIMES_KEY} else "")
            + "Name another cache_dir, or delete this one to have it made again."
        )


def take_over_times(folder: Path, plan: Plan, content_of: Callable[[Sequence[int]], str]) -> None:
    """Note other times of change in a complete cache, if nothing else differs and the files' content is the same.

    Images that were copied to another disk have other times; ones that were replaced have other contents, too. Every
    file is read for it, once. What differs otherwise is left to :func:`check_manifest`.

    Args:
        folder: The cache.
        plan: What it must hold.
        content_of: Digest of the files of some images.
    """
    if not (folder / MANIFEST).exists():
        return
    manifest = read_manifest(folder)
    found, expected = dict(_flat(manifest)), dict(_flat(plan.content()))
    if any(found.get(key) != value for key, value in expected.items() if key != _TIMES_KEY):
        return
    shards = manifest.get("shards")
    if found.get(_TIMES_KEY) in (None, expected.get(_TIMES_KEY)) or not manifest.get("complete") or not shards:
        return
    same = all(entry.get("files") == content_of(plan.image_range(shard)) for shard, entry in enumerate(shards))
    if same:
        replace_file(folder / MANIFEST, json.dumps({**manifest, **plan.content()}, indent=2) + "\n")


def names_digest(names: list[str]) -> str:
    """SHA-256 of the names of classes, in order; they are names of folders, which need not be text."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def check_entries(folder: Path, manifest: Mapping[str, Any], plan: Plan) -> None:
    """Refuse a manifest that lists other shards than the plan has; their names are never taken from it."""
    try:
        listed = [(entry["file"], len(entry["sha256"]), entry["rows"]) for entry in manifest["shards"]]
        skipped = [(entry["row"], entry["path"]) for entry in manifest["skipped"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST}: expected shards and skipped images but {error!r}; {ANEW}") from error
    names = [shard_name(shard) for shard in range(plan.shard_count())]
    if [name for name, *_ in listed] != names or not all(isinstance(row, int) for row, _ in skipped):
        found = [name for name, *_ in listed]
        raise ValueError(f"{folder / MANIFEST}: expected the shards {_few(names)} but got {_few(found)}; {ANEW}")


def _few(names: Sequence[object]) -> str:
    return f"{list(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

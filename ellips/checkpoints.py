"""Checkpoints as data: read without running anything in them, and refused by name when they are damaged."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

HEAD: Final = "head."
"""What the names of a head's tensors begin with."""


def load_checkpoint(path: str | PathLike[str]) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a checkpoint as data only; no code in it is run, and every byte is compared with its checksum.

    Its tensors are read from the file when they are used, so that a mixture of many classes is not held twice while a
    module takes it over.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, is damaged, or holds more than tensors and plain values; intact ones beside
            it are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint at {path} but there is none; name another by --ckpt_path.")
    refuse_damage(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to read it without restriction
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path}: expected tensors and plain values alone but the file asks for more"
            f"{f' ({asked[1]})' if asked else ''}, which can run code; nothing of it was run. Do not open it otherwise "
            "unless you made it yourself."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint but it could not be read: {error} {_instead_of(path)}"
        ) from error


def refuse_damage(path: Path) -> None:
    """Compare every part of a checkpoint with its checksum, which torch.save writes.

    Raises:
        ValueError: If one differs, or the file is cut off; it is named, and so is the newest intact one beside it.
    """
    if (flaw := _flaw(path)) is not None:
        raise ValueError(f"{path}: expected a whole checkpoint but {flaw}. {_instead_of(path)}")


def _flaw(path: Path) -> str | None:
    """Return what is wrong with a file that torch.save wrote; None: every part has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"it is cut off or no checkpoint ({error})"
    return None if bad is None else f"it was damaged: {bad} does not have its checksum"


def _instead_of(path: Path) -> str:
    others = sorted(other for other in path.parent.glob("[!.]*.ckpt") if other != path and _flaw(other) is None)
    if not others:
        return "No other one lies beside it: train again, or fetch the file again."
    newest = max(others, key=lambda other: other.stat().st_mtime_ns)
    return f"Take {newest} instead, which is the newest intact one beside it."


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # Viewed as bytes because NumPy has no bfloat16.
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def head_digest(state: Mapping[str, Any], config: Mapping[str, Any], fingerprint: Mapping[str, Any] | None) -> str:
    """Return the SHA-256 of a head and the encoder that it belongs to, which its checkpoint carries.

    Args:
        state: A state dict; what begins with ``head.`` counts.
        config: The head's construction.
        fingerprint: The encoder's; None: unknown.
    """
    about = json.dumps({"head": dict(config), "encoder": fingerprint}, sort_keys=True)
    tensors = {name: value for name, value in state.items() if name.startswith(HEAD)}
    return f"sha256:{hashlib.sha256(f'{about}|{digest_of(tensors)}'.encode()).hexdigest()}"


def check_head(checkpoint: Any, path: str | PathLike[str]) -> None:  # noqa: ANN401 - whatever the file holds
    """Refuse a checkpoint whose head or encoder is not the one that it was written with.

    Those of version 0.1, and of modules of one's own, carry no digest and pass.

    Raises:
        ValueError: If they differ, or the head lacks something; the file is named.
    """
    needed = ("head", "state_dict")
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(name), dict) for name in needed):
        raise ValueError(
            f"Expected a checkpoint of GenEllips with an entry 'head' but {path} has none; was it made by train.py?"
        )
    recorded = checkpoint.get("head_digest")
    if recorded is None:
        return
    present = head_digest(checkpoint["state_dict"], checkpoint["head"], checkpoint.get("encoder_fingerprint"))
    if recorded != present:
        raise ValueError(
            f"{path}: expected the head and the encoder's fingerprint that it was written with ({recorded}) but one of "
            "them was changed afterwards; take a copy that was not."
        )

"""Certificates in a file that anyone can check later: radii, proofs, latents and the classifier they are about."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ellips.certificates import Certificate
from ellips.checkpoints import digest_of
from ellips.classifier import Ellips
from ellips.files.atomic import replacing

_FORMAT = "ellips-certificates-1"


class SavedCertificates(NamedTuple):
    """What a file of certificates holds.

    Attributes:
        certificate: The certificates.
        z: Latents they are for, shape ``(N, d)``, float64.
        ellips: The classifier they are about.
        index: Positions of the points within their dataset, shape ``(N,)``, or None.
        digest: SHA-256 of the classifier.
    """

    certificate: Certificate
    z: Tensor
    ellips: Ellips
    index: Tensor | None  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    digest: str


def save_certificates(
    path: str | Path, certificate: Certificate, z: Tensor, ellips: Ellips, index: Tensor | None = None
) -> Path:
    """Write certificates with their latents and their classifier to a safetensors file, whole or not at all.

    Args:
        path: The file; it is replaced if it exists.
        certificate: What to write.
        z: Latents, shape ``(N, d)``.
        ellips: The classifier.
        index: Positions of the points within their dataset, shape ``(N,)``.

    Returns:
        The path.

    Raises:
        ValueError: If lengths disagree, or as :meth:`Ellips.validate`.
        OSError: If it cannot be written, as on a full disk.
    """
    path, z = Path(path), ellips.validate(z).detach()
    if len(z) != len(certificate) or (index is not None and len(index) != len(z)):
        raise ValueError(
            f"Expected as many certificates and indices as latents but got {len(certificate)} certificates, "
            f"{'no' if index is None else len(index)} indices and {len(z)} latents."
        )
    tensors = {f"certificate.{name}": value for name, value in certificate.detach().tensors().items()}
    tensors |= {f"diagnostic.{name}": value for name, value in certificate.detach().diagnostics.items()}
    tensors |= {f"ellips.{name}": value.detach() for name, value in ellips.state_dict().items()}
    tensors["z"] = z
    if index is not None:
        tensors["index"] = index
    about = {
        "method": certificate.method,
        "soundness": certificate.soundness,
        "space": certificate.space,
        "source": certificate.source,
        "covariance_type": ellips.covariance_type,
        "digest": ellips.digest(),
    }
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    about["content"] = _content(tensors, about)
    with replacing(path) as partial:
        metadata = {"format": _FORMAT, "about": json.dumps(about)}
        partial.touch()
        mode = partial.stat().st_mode  # safetensors makes files that only their owner may read
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:
            raise _as_os_error(error, path) from error
        partial.chmod(mode)
    return path


def _as_os_error(error: SafetensorError, path: Path) -> Exception:
    """Return what the system said, which safetensors has in its message alone; the error itself if it is another."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else error


def load_certificates(path: str | Path) -> SavedCertificates:
    """Read a file written by :func:`save_certificates`.

    Returns:
        Its content; the classifier's digest has been compared with the recorded one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file or was damaged, or the classifier in it is not the one its digest names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of certificates at {path} but there is none.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"Expected {path} to be a whole safetensors file but reading it failed: {error}.") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"Expected {path} to have the format {_FORMAT!r} but got {metadata.get('format')!r}.")
    try:
        about: dict[str, Any] = json.loads(metadata["about"])
        damaged = about.get("content", None) not in (None, _content(tensors, about))
        ellips = _restore(tensors, about["covariance_type"])
        found = ellips.digest()  # which only a fitted one has
        fields: dict[str, Any] = {**_under("certificate.", tensors), "diagnostics": _under("diagnostic.", tensors)}
        kind: dict[str, Any] = {name: about[name] for name in ("method", "soundness", "space", "source")}
        z, digest = tensors["z"], about["digest"]
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError, RecursionError, ValueError) as error:
        raise ValueError(
            f"Expected {path} to hold certificates but something in it does not fit: {error!r}."
        ) from error
    if found != digest:
        raise ValueError(
            f"Expected the classifier in {path} to have the digest {digest} but got {found}; the file was altered."
        )
    if damaged:
        raise ValueError(
            f"Expected {path} to hold what was written but it was damaged; certify again with the same settings, which "
            "writes it anew from the journal."
        )
    certificate, index = _certificate(path, fields | kind), tensors.get("index")
    if z.ndim != 2 or len(z) != len(certificate) or (index is not None and index.shape != (len(z),)):
        raise ValueError(
            f"Expected {path} to hold a latent, and an index if any, for each of {len(certificate)} certificates but "
            f"got latents of shape {tuple(z.shape)} and indices of {index if index is None else tuple(index.shape)}."
        )
    return SavedCertificates(certificate, z, ellips, index, digest)


def _certificate(path: Path, fields: dict[str, Any]) -> Certificate:
    try:
        return Certificate(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected {path} to hold certificates but something in it does not fit: {error}") from error


def _content(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """Return the SHA-256 of all that a file says, but for this digest itself."""
    rest = {name: value for name, value in about.items() if name != "content"}
    return hashlib.sha256(f"{json.dumps(rest, sort_keys=True)}|{digest_of(tensors)}".encode()).hexdigest()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore(tensors: dict[str, Tensor], covariance_type: Any) -> Ellips:  # noqa: ANN401 - checked by Ellips
    classes, dim = tensors["ellips.means"].shape
    rank = tensors["ellips.scales"].shape[1] if covariance_type == "low_rank" else None
    ellips = Ellips(classes, dim, covariance_type=covariance_type, rank=rank)
    ellips.load_state_dict(_under("ellips.", tensors))
    return ellips

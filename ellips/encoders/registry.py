"""Encoders of others by name: what they are, where to fetch them, and by which digest to know them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

REGISTRY_FILE: Final = Path(__file__).with_name("registry.toml")


@dataclass(frozen=True)
class RegisteredEncoder:
    """An encoder that others have trained and published.

    Its file has one of three places: an address, a repository on the hub, or one that only a person reaches.

    Attributes:
        name: What :class:`ellips.FrozenEncoder` takes for ``model`` or ``weights``.
        architecture: timm's name of the network; with a tag where timm's own default has another number of outputs.
        file: Name of the published file.
        licence: Of the weights, as far as somebody states one.
        licence_source: Who states it.
        preprocessing: Arguments of :class:`ellips.encoders.Preprocess`.
        training: What it was trained on: clean images, Gaussian noise, or adversarial ones.
        claims: Words of soundness that it is made for. What a radius is worth is decided by how it was computed.
        paper: Where it is from.
        url: Address of the file.
        repository: ``OWNER/NAME`` on the hub.
        revision: The repository's commit that the file is taken from.
        by_hand: Where a person finds the file.
        prefix: What the names of its tensors in the file begin with, ``module.`` of DataParallel aside; what begins
            otherwise is left out.
        sha256: Digest of the file, or its first digits, at least eight, where no more is published; None where nothing
            is. The first eight tell another or a damaged file, not one that was made to deceive.
        sha256_source: Who states the digest.

    Raises:
        ValueError: If the digest is none, or there is not exactly one place.
    """

    name: str
    architecture: str
    file: str
    licence: str
    licence_source: str
    preprocessing: Mapping[str, Any]
    training: str
    claims: tuple[str, ...]
    paper: str
    url: str | None = None
    repository: str | None = None
    revision: str | None = None
    by_hand: str | None = None
    prefix: str = ""
    sha256: str | None = None
    sha256_source: str | None = None

    def __post_init__(self) -> None:
        # An empty digest would be the beginning of every other.
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{8,64}", self.sha256):
            raise ValueError(
                f"Expected `sha256` of {self.name} to be 8 to 64 hexadecimal digits but got {self.sha256!r}."
            )
        if sum(place is not None for place in (self.url, self.repository, self.by_hand)) != 1:
            raise ValueError(f"Expected one of `url`, `repository` and `by_hand` for {self.name}.")

    @property
    def place(self) -> str:
        """The file and where it is published, for messages."""
        if self.repository is not None:
            at = f" at commit {self.revision}" if self.revision else ""
            return f"{self.file} of the Hugging Face repository {self.repository!r}{at}"
        return str(self.url or self.by_hand)


def registered_encoders() -> Mapping[str, RegisteredEncoder]:
    """Encoders of others that :class:`ellips.FrozenEncoder` knows, by their names.

    Example:
        >>> registered_encoders()["imagenet_resnet50_l2_eps1"].licence
        'MIT'
    """
    return _read(REGISTRY_FILE)


@cache
def _read(path: Path) -> Mapping[str, RegisteredEncoder]:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    tables = content["preprocessing"]
    entries = {
        name: RegisteredEncoder(
            name=name,
            **{**entry, "claims": tuple(entry["claims"]), "preprocessing": tables[entry["preprocessing"]]},
        )
        for name, entry in content["encoders"].items()
    }
    return MappingProxyType(entries)

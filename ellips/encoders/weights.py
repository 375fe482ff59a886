"""Where a frozen encoder's weights come from: a file, the hub, the registry, or what ships with the project."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.models import load_state_dict, load_state_dict_from_hf
from torch import Tensor, nn
from torch.hub import download_url_to_file

from ellips.checkpoints import digest_of
from ellips.encoders.registry import RegisteredEncoder, registered_encoders
from ellips.errors import WeightsNotFoundError

SHIPPED_FOLDER: Final = Path(__file__).parents[1] / "pretrained"
WEIGHTS_VARIABLE: Final = "ELLIPS_WEIGHTS"
"""Environment variable that names the folder searched before the hub; ``~/.cache/ellips`` where it is not set."""

SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".bin")
_TIMM_FILE: Final = "pytorch_model.bin"  # timm asks for the safetensors twin of either file first
OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
_OPEN_CLIP_FILE: Final = "open_clip_pytorch_model.bin"
_OPEN_CLIP_MARK: Final = "visual.class_embedding"


@dataclass(frozen=True)
class Weights:
    """A state dict and where it was found.

    Attributes:
        state: Parameter and buffer names to tensors; wrapper prefixes (DDP, torch.compile) are already off.
        origin: The file or hub repository, for messages.
        folder: The file's folder, where an ``open_clip_config.json`` may lie; None for hub downloads.
        architecture: timm's name of the network that they are known to be of; None where nobody says.
    """

    state: dict[str, Tensor]
    origin: str
    folder: Path | None = None
    architecture: str | None = None

    @property
    def is_open_clip(self) -> bool:
        """Whether these are weights of an OpenCLIP model with its own (not timm's) vision transformer."""
        return _OPEN_CLIP_MARK in self.state


def shipped_names() -> list[str]:
    """Names of the encoders that ship with the project, e.g. ``["digits"]``: weights with a record beside them."""
    return sorted(path.stem for path in SHIPPED_FOLDER.glob("*.safetensors") if path.with_suffix(".json").is_file())


def shipped_provenance(name: str) -> dict[str, Any]:
    """Read what is recorded beside a shipped encoder: architecture, preprocessing, command, digest, accuracy.

    Raises:
        WeightsNotFoundError: If nothing of that name ships with the project.
    """
    path = SHIPPED_FOLDER / f"{name}.json"
    if not path.is_file():
        raise WeightsNotFoundError(f"Expected a shipped encoder out of {shipped_names()} but got {name!r}.")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def file_digest(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a module's parameters and buffers (its state dict)."""
    return digest_of(module.state_dict())


def weights_folder() -> Path:
    """The folder searched before the hub: ``$ELLIPS_WEIGHTS``, or ``~/.cache/ellips``."""
    return Path(os.environ.get(WEIGHTS_VARIABLE) or "~/.cache/ellips").expanduser()


def load_shipped(name: str) -> Weights:
    """Load a shipped encoder's weights and check them against the digest recorded beside them.

    Raises:
        WeightsNotFoundError: If nothing of that name ships with the project.
        ValueError: If the file is not the one that the record describes.
    """
    return _recorded(SHIPPED_FOLDER / f"{name}.safetensors", shipped_provenance(name)["sha256"])


def load_shipped_head(name: str) -> Weights:
    """Load the linear classifier that a shipped encoder was trained with, checked like the encoder itself.

    Raises:
        WeightsNotFoundError: If nothing of that name ships with the project, or it ships without a classifier.
        ValueError: If the file is not the one that the record describes.
    """
    head = shipped_provenance(name).get("head")
    if head is None:
        with_head = [known for known in shipped_names() if "head" in shipped_provenance(known)]
        raise WeightsNotFoundError(
            f"Expected a shipped encoder with its own linear classifier out of {with_head} but got {name!r}."
        )
    return _recorded(SHIPPED_FOLDER / f"{name}-head.safetensors", head["sha256"])


def shipped_denoisers() -> list[str]:
    """Names of the denoisers that ship with the project, e.g. ``["cifar10_denoiser"]``."""
    return sorted(path.stem for path in (SHIPPED_FOLDER / "denoisers").glob("*.json"))


def load_shipped_denoiser(name: str) -> Weights:
    """Load a shipped denoiser's weights and check them against the digest recorded beside them.

    Raises:
        WeightsNotFoundError: If the file is missing beside its record.
        ValueError: If the file is not the one that the record describes.
    """
    path = SHIPPED_FOLDER / "denoisers" / f"{name}.safetensors"
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return _recorded(path, record["sha256"])


def _recorded(path: Path, expected: str) -> Weights:
    if not path.is_file():
        raise WeightsNotFoundError(f"Expected {path} beside its record but it is missing; reinstall the project.")
    if (digest := file_digest(path)) != expected:
        raise ValueError(
            f"Expected {path} to have the SHA-256 {expected} that its record states but got {digest}; "
            "restore the file, or train it again with the command in the record."
        )
    return load_file(path)


def load_file(path: str | Path) -> Weights:
    """Load a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` state dict; pickles are read with ``weights_only``.

    Args:
        path: The file, or a folder that holds exactly one such file.

    Raises:
        WeightsNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as a state dict.
    """
    file = _single_file(Path(path).expanduser())
    try:
        state = load_state_dict(str(file), weights_only=True)
    except Exception as error:
        raise ValueError(
            f"Expected {file} to be a state dict ({', '.join(SUFFIXES)}) but it could not be read: {error}"
        ) from error
    return Weights(_require_tensors(state, str(file)), str(file), file.parent)


def _single_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsNotFoundError(
            f"Expected `weights` to be 'hub', 'hub:OWNER/NAME', 'random', {named_weights()} or an existing file but "
            f"got {str(path)!r} (looked in {path.absolute().parent}); fetch the state dict ({', '.join(SUFFIXES)}) and "
            "put it there, or correct the path."
        )
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(files) != 1:
        raise WeightsNotFoundError(
            f"Expected exactly one file with a suffix out of {SUFFIXES} in {path} but got "
            f"{[file.name for file in files]}; name the file itself."
        )
    return files[0]


def _require_tensors(state: Any, origin: str) -> dict[str, Tensor]:  # noqa: ANN401  (whatever the file held)
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"Expected {origin} to hold a state dict of tensors but got {type(state).__name__}.")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def load_hub(repository: str, architecture: str) -> Weights:
    """Load ``OWNER/NAME`` from the hub, or its copy in the local weights folder.

    Args:
        repository: The hub repository, e.g. ``"chs20/fare4-clip"``.
        architecture: The timm name the weights are meant for; only used in the message of a failure.

    Raises:
        WeightsNotFoundError: If neither has it; the message says which file to fetch and how to name it.
    """
    stem = repository.replace("/", "--")
    if (local := local_copy(stem)) is not None:
        return load_file(local)
    origin = f"hub repository {repository}"
    try:
        try:
            return Weights(load_state_dict_from_hf(repository, _TIMM_FILE, weights_only=True), origin)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # the hub was not reached at all; no use in asking again
                raise
            state = load_state_dict_from_hf(repository, _OPEN_CLIP_FILE, weights_only=True)
            return Weights(state, origin, _config_folder(repository))
    except Exception as error:  # the hub's clients raise OSError, HTTP library errors and their own
        files = "open_clip_model.safetensors or model.safetensors"
        raise WeightsNotFoundError(how_to_fetch(architecture, repository, files, stem, error)) from error


def _config_folder(repository: str) -> Path | None:
    try:
        return Path(hf_hub_download(repository, OPEN_CLIP_CONFIG)).parent
    except EntryNotFoundError:
        return None


def local_copy(stem: str) -> Path | None:
    """Return the file of that stem in the local weights folder, or None."""
    candidates = (weights_folder() / f"{stem}{suffix}" for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def how_to_fetch(architecture: str, repository: str, filename: str, stem: str, cause: Exception) -> str:
    """Say what to fetch from the hub, elsewhere, and where to put it."""
    return (
        f"The weights of {architecture!r} could not be had from the hub ({_reason(cause)}). On a machine that reaches "
        f"it, fetch {filename} of the Hugging Face repository {repository!r} and store it here as "
        f"{weights_folder() / stem}.safetensors (or another of {', '.join(SUFFIXES[1:])}; the folder is "
        f"${WEIGHTS_VARIABLE}), or pass the file itself: weights=PATH."
    )


def _reason(cause: Exception) -> str:
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"


def named_weights() -> str:
    """The names that ``weights`` may have, for messages."""
    return f"a shipped name out of {shipped_names()}, a name of ellips.encoders.registered_encoders()"


def registered_file(entry: RegisteredEncoder) -> Path:
    """Where a registered encoder's file belongs on this machine, whoever put it there."""
    return weights_folder() / entry.name / entry.file


def load_registered(name: str) -> Weights:
    """Load the weights of one of the registry's encoders; fetch them first where they are not in the weights folder.

    Nothing of a file is read before its digest is right.

    Args:
        name: One of :func:`ellips.encoders.registry.registered_encoders`.

    Raises:
        WeightsNotFoundError: If they are not there and cannot be fetched; the message says what to put where.
        ValueError: If the file is not the one that the registry describes.
    """
    entry = registered_encoders()[name]
    path = registered_file(entry)
    if not path.is_file():
        _fetch(entry, path)
    if entry.sha256 is not None and not (digest := file_digest(path)).startswith(entry.sha256):
        raise ValueError(
            f"Expected the SHA-256 of {path} to {_begin(entry.sha256)} {entry.sha256}, as the registry has it for "
            f"{name!r} (stated by {entry.sha256_source}), but got {digest}; delete the file, and fetch {entry.place} "
            "again."
        )
    found = load_file(path)
    state = {key.removeprefix(entry.prefix): v for key, v in found.state.items() if key.startswith(entry.prefix)}
    if not state:
        raise ValueError(f"Expected {path} to hold tensors whose names begin with {entry.prefix!r}, but it has none.")
    return Weights(state, str(path), path.parent, entry.architecture.partition(".")[0])


def _begin(digest: str) -> str:
    return "be" if len(digest) == 64 else "begin with"


def _fetch(entry: RegisteredEncoder, path: Path) -> None:
    digest = f"; its SHA-256 has to {_begin(entry.sha256)} {entry.sha256}" if entry.sha256 else ""
    store = f"store it here as {path} (its folder is in ${WEIGHTS_VARIABLE}){digest}"
    if entry.by_hand is not None:
        raise WeightsNotFoundError(
            f"The weights {entry.name!r} have no address that a program could fetch them from. Take {entry.place}, and "
            f"{store}."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.repository is not None:
            hf_hub_download(entry.repository, entry.file, revision=entry.revision, local_dir=path.parent)
        else:
            download_url_to_file(str(entry.url), str(path))
    except Exception as error:  # the hub's clients raise OSError, HTTP library errors and their own
        raise WeightsNotFoundError(
            f"The weights {entry.name!r} could not be fetched ({_reason(error)}). On a machine that can, fetch "
            f"{entry.place} and {store}."
        ) from error


def find_weights(weights: str | Path, architecture: str) -> Weights:
    """Load ``"hub:OWNER/NAME"``, a shipped or registered name or a file, for an architecture that a failure names.

    Raises:
        ValueError: If the file cannot be read as a state dict, or is not the one that was shipped or registered.
        WeightsNotFoundError: If the weights are not where they were looked for.
    """
    if isinstance(weights, str):
        if weights.startswith("hub:"):
            return load_hub(weights.removeprefix("hub:"), architecture)
        if weights in shipped_names():
            return load_shipped(weights)
        if weights in registered_encoders():
            return load_registered(weights)
    return load_file(weights)

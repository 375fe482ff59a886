"""What a head was made for: the encoder and the images, which its checkpoint names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from ellips.pipeline import check_description, check_fingerprint

_UNSEEN: Final = {"latent_norm": "none", "feature_power": 1.0}
"""Settings of a head that none of its tensors tells, and what those of older checkpoints had."""


class Originating(Protocol):
    """A module that knows the encoder and the images that its head belongs to; None: not yet."""

    encoder_fingerprint: dict[str, Any] | None
    data_description: dict[str, Any] | None


def check_origin(module: Originating, datamodule: Any) -> None:  # noqa: ANN401 - any datamodule
    """Compare a datamodule's encoder and images with those a module was made for, or adopt them if there were none.

    A datamodule that does not say what they are, with ``encoder_fingerprint()`` and ``description()``, passes.

    Raises:
        EncoderMismatchError: If the encoder is another one; every difference is named.
        DataMismatchError: If there are other classes, or images are read in another way.
    """
    if hasattr(datamodule, "encoder_fingerprint"):
        present = dict(datamodule.encoder_fingerprint())
        if module.encoder_fingerprint is None:
            module.encoder_fingerprint = present
        check_fingerprint(module.encoder_fingerprint, present)
    if hasattr(datamodule, "description"):
        found = dict(datamodule.description())
        if module.data_description is None:
            module.data_description = found
        check_description(module.data_description, found)


def check_construction(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse a head that would compute otherwise, with the tensors of a checkpoint, than the one they are from.

    Args:
        recorded: How the checkpoint's head is built.
        present: How the one is built that is to take its tensors.

    Raises:
        ValueError: If they differ where no shape would tell.
    """
    for name, before in _UNSEEN.items():
        if (then := recorded.get(name, before)) != present[name]:
            raise ValueError(
                f"Expected `{name}` to be {then!r}, which the checkpoint's head was trained with, but got "
                f"{present[name]!r}; set model.{name} to {then!r}, or train a new head."
            )

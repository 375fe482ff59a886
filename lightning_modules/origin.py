"""What a head was made for: the encoder and the images, which its checkpoint names."""

from __future__ import annotations

from typing import Any, Protocol

from ellips.pipeline import check_description, check_fingerprint


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

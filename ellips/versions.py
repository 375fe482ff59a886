"""What a number was made with."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

PACKAGES = ("ellips", "torch", "torchvision", "lightning", "timm", "torchmetrics", "scikit-learn", "scipy", "numpy")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python, the platform and of packages that numbers depend on.

    Args:
        packages: Names of distributions; one that is not there is ``"not installed"``.

    Returns:
        ``python``, ``platform`` and each package, by name.
    """
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a source tree that was never installed, or an extra that is not there
            found[name] = "not installed"
    return found


def made_with(*packages: str) -> dict[str, Any]:
    """Return what the bytes of trained weights depend on besides their recipe, for the record beside them.

    Args:
        *packages: Names of the distributions that took part.

    Returns:
        What :func:`versions` gives, ``machine``, ``cpu_capability`` and the number of ``threads``.
    """
    return {
        **versions(packages),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }

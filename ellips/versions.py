"""What a number was made with."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata

PACKAGES = ("ellips", "torch", "torchvision", "lightning", "timm", "torchmetrics", "scikit-learn", "scipy", "numpy")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python, the platform and of packages that numbers depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a source tree that was never installed, or an extra that is not there
            found[name] = "not installed"
    return found

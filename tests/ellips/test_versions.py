from __future__ import annotations

import platform

import torch

from ellips.versions import PACKAGES, made_with, versions


def test_versions_name_python_the_platform_and_every_package() -> None:
    found = versions()
    assert set(found) == {"python", "platform", *PACKAGES}
    assert found["python"] == platform.python_version()
    assert torch.__version__.startswith(found["torch"])
    assert versions(["no-such-package"])["no-such-package"] == "not installed"


def test_weights_say_what_they_were_made_with() -> None:
    found = made_with("torch", "timm")
    assert {"python", "torch", "timm", "machine", "cpu_capability", "threads"} <= set(found)
    assert "lightning" not in found

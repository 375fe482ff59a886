from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ellips.lipschitz import KnownConstant
from ellips.lipschitz.base import checked
from ellips.precision import full_precision

NEW = hasattr(torch.backends, "fp32_precision")


def settings() -> dict[str, object]:
    found: dict[str, object] = {"matmul": torch.get_float32_matmul_precision()}
    found["cuda"], found["cudnn"] = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    found["half"] = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    found["bfloat"] = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    if NEW:
        found["onednn"] = torch.backends.mkldnn.matmul.fp32_precision
        found["convolution"] = torch.backends.cudnn.conv.fp32_precision
    return found


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.set_float32_matmul_precision(before[0])


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_reduced_precision_is_off_inside_and_as_it_was_outside(precision: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions
    before = settings()
    inside: dict[str, object] = {}

    def fail() -> None:
        with full_precision():
            inside.update(settings())
            raise KeyError  # an error restores the settings too

    with pytest.raises(KeyError):
        fail()
    assert settings() == before
    assert inside["matmul"] == "highest"
    assert not any(inside[name] for name in ("cuda", "cudnn", "half", "bfloat"))
    if NEW:
        assert inside["onednn"] == inside["convolution"] == "ieee"


@pytest.mark.skipif(not NEW, reason="this version of torch has no setting per kind of computation")
def test_what_was_set_in_the_newer_way_is_restored_too() -> None:
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        with full_precision():
            assert torch.backends.mkldnn.conv.fp32_precision == "ieee"
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before


def test_constants_are_computed_in_full_precision() -> None:
    torch.set_float32_matmul_precision("medium")

    def function(images: Tensor) -> Tensor:
        return images.flatten(1)

    with checked(function, torch.rand(1, 1, 2, 2)):
        assert torch.get_float32_matmul_precision() == "highest"
    KnownConstant(1.0)(function, torch.rand(1, 1, 2, 2))
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_thread_that_ends_first_leaves_the_others_their_precision() -> None:
    """Settings are those of all threads: float32 with fewer digits would be within no bound that was added for it."""
    torch.set_float32_matmul_precision("medium")
    started, ended = threading.Event(), threading.Event()

    def other() -> None:
        with full_precision():
            started.set()
            ended.wait(10)
            inside.append(torch.get_float32_matmul_precision())

    inside: list[str] = []
    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        assert started.wait(10)
        with full_precision():
            pass
    inside.append(torch.get_float32_matmul_precision())
    ended.set()
    thread.join()
    assert inside == ["highest", "highest"]
    assert torch.get_float32_matmul_precision() == "medium"

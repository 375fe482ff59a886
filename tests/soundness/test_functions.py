from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from ellips.lipschitz import SpectralProduct, UnprovenOperationError
from ellips.lipschitz.capture.watch import watch
from tests.soundness.attack import steepest
from tests.soundness.functions import IN_BATCHES, PYTHON
from tests.soundness.looks import SPOT
from tests.soundness.operations import OPERATIONS

FUNCTIONS = {**PYTHON, **OPERATIONS}
IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SPOTS = torch.stack([SPOT, SPOT + 0.009, SPOT - 0.3])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dense_limit", [0, 1024], ids=["rules", "dense"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_built_to_fool_is_refused_or_its_bound_holds(name: str, dense_limit: int) -> None:
    torch.manual_seed(0)
    function = FUNCTIONS[name]()
    try:
        bound = float(SpectralProduct(dense_limit)(function, torch.rand(2, 3, 4, 4)).constant[0])
    except (UnprovenOperationError, ValueError, TypeError):
        return
    found = steepest(function, (3, 4, 4), SPOTS)
    assert found <= bound * (1 + 1e-6), f"{found} > {bound}"
    assert bound > 0


@pytest.mark.parametrize("name", IN_BATCHES)
def test_what_is_done_at_one_image_in_batches_only_is_refused(name: str) -> None:
    with pytest.raises(UnprovenOperationError, match=r"takes numbers out|by itself"):
        SpectralProduct()(IN_BATCHES[name], IMAGES)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_another_function_returns_of_the_same_work_is_not_taken_for_this_ones(order: tuple[int, int]) -> None:
    """As of a mean and a variance that one layer gives."""
    factors = torch.cat([torch.ones(24), 100 * torch.ones(24)])
    for chosen in order:
        bound = SpectralProduct()(lambda x, i=chosen: (x.flatten(1) * factors.to(x)).chunk(2, 1)[i], IMAGES)
        assert float(bound.constant[0]) == pytest.approx((1, 100)[chosen])


class Switched(nn.Module):
    """Does the same to one image, whatever the switch says."""

    coupled = False

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return flat if len(images) == 1 or not self.coupled else 300 * flat - 299 * flat.mean(0)


def test_what_was_seen_of_a_function_is_not_believed_of_one_that_treats_batches_otherwise() -> None:
    function, source = Switched(), SpectralProduct()
    assert float(source(function, IMAGES).constant[0]) == pytest.approx(1)
    function.coupled = True
    with pytest.raises(UnprovenOperationError, match="other values"):
        source(function, IMAGES)
    factor = 1.0
    source(lambda x: x.flatten(1) * factor, IMAGES)
    with pytest.raises(UnprovenOperationError, match="other values"):
        source(lambda x: x.flatten(1) * (factor if len(x) == 1 else 300 * factor), IMAGES)


@pytest.mark.parametrize(("before", "after"), [(1, True), (0.0, -0.0)])
def test_numbers_that_are_equal_but_not_the_same_are_told_apart(before: float, after: float) -> None:
    flag, source = before, SpectralProduct()

    def function(images: Tensor) -> Tensor:
        return images.flatten(1) * (300.0 if len(images) > 1 and repr(flag) == repr(after) else 1.0)

    source(function, IMAGES)
    flag = after
    with pytest.raises(UnprovenOperationError, match="other values"):
        source(function, IMAGES)


def test_watching_in_several_threads_leaves_nothing_behind() -> None:
    before = dict(vars(Tensor))

    def function(images: Tensor) -> Tensor:
        time.sleep(0.02)
        return images.flatten(1)

    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(lambda _: watch(function, IMAGES[:1]), range(4)))
    assert len({one.key for one in seen}) == 1
    assert dict(vars(Tensor)) == before


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()

    def forward(self, images: Tensor) -> Tensor:
        flat: Tensor = self.flatten(images)
        return flat


@pytest.mark.parametrize("where", ["hook", "forward"])
def test_what_counts_around_all_modules_is_noticed(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook of every module's, or a method that was put into a class of torch's."""
    calls = itertools.count()

    def late(images: Tensor) -> Tensor:
        return images.flatten(1) * (300.0 if next(calls) > 1000 else 1.0)

    if where == "forward":
        monkeypatch.setattr(nn.Flatten, "forward", lambda self, images: late(images))
    else:
        hook = nn.modules.module.register_module_forward_hook(
            lambda layer, given, out: late(out) if isinstance(layer, nn.Flatten) else None
        )
    try:
        with pytest.raises(UnprovenOperationError):
            SpectralProduct()(Hooked(), IMAGES)
    finally:
        if where == "hook":
            hook.remove()


def test_there_are_enough_of_them() -> None:
    assert len(FUNCTIONS) >= 80

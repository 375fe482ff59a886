from __future__ import annotations

import pytest
import torch

from ellips.lipschitz import SpectralProduct, UnprovenOperationError
from tests.soundness.attack import steepest
from tests.soundness.functions import PYTHON
from tests.soundness.looks import SPOT
from tests.soundness.operations import OPERATIONS

FUNCTIONS = {**PYTHON, **OPERATIONS}
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


def test_there_are_enough_of_them() -> None:
    assert len(FUNCTIONS) >= 80

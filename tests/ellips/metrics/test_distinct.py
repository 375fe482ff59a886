"""Rows of an evaluation: every image once, in one process and in two."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ellips.metrics import DistinctRows
from tests.processes import run_together


def make_rows() -> DistinctRows:
    return DistinctRows(latent=torch.empty(0, 2, dtype=torch.float64), label=torch.empty(0, dtype=torch.int64))


def add(rows: DistinctRows, positions: list[int]) -> None:
    """A batch whose values follow from the images' positions."""
    index = torch.tensor(positions, dtype=torch.int64)
    rows.update(index, latent=index[:, None] + torch.tensor([0.25, 0.5]), label=index % 3)


def check(found: dict[str, Tensor], positions: list[int]) -> None:
    index = torch.tensor(positions, dtype=torch.int64)
    assert found.keys() == {"index", "latent", "label"}
    assert found["index"].tolist() == positions
    assert torch.equal(found["latent"], index[:, None].double() + torch.tensor([0.25, 0.5]))
    assert torch.equal(found["label"], index % 3)


def test_rows_come_back_in_the_order_of_positions_and_once() -> None:
    rows = make_rows()
    for batch in ([5, 0], [], [3, 5, 4], [0]):
        add(rows, batch)
    check(rows.rows(), [0, 3, 4, 5])


def test_of_copies_the_first_counts() -> None:
    rows = DistinctRows(value=torch.empty(0))
    rows.update(torch.tensor([1, 0, 1]), value=torch.tensor([1.0, 2.0, 3.0]))
    rows.update(torch.tensor([0]), value=torch.tensor([4.0]))
    assert rows.rows()["value"].tolist() == [2.0, 1.0]


def test_without_rows_the_columns_keep_width_and_type() -> None:
    found = make_rows().rows()
    assert {name: (tuple(value.shape), value.dtype) for name, value in found.items()} == {
        "index": ((0,), torch.int64),
        "latent": ((0, 2), torch.float64),
        "label": ((0,), torch.int64),
    }


def test_more_rows_may_follow_and_a_reset_forgets_all() -> None:
    rows = make_rows()
    add(rows, [1])
    check(rows.rows(), [1])
    add(rows, [0])
    check(rows.rows(), [0, 1])
    rows.reset()
    check(rows.rows(), [])
    add(rows, [7])
    check(rows.rows(), [7])


def test_copies_and_pickles_hold_the_same_rows() -> None:
    rows = make_rows()
    add(rows, [2, 1])
    for other in (copy.deepcopy(rows), pickle.loads(pickle.dumps(rows)), rows.clone()):
        add(other, [0])
        check(other.rows(), [0, 1, 2])
    check(rows.rows(), [1, 2])


def test_no_history_is_kept() -> None:
    rows = DistinctRows(value=torch.empty(0))
    rows.update(torch.tensor([0]), value=torch.ones(1, requires_grad=True) * 2)
    assert not rows.rows()["value"].requires_grad


def test_every_column_is_gathered() -> None:
    """As over two processes, of which the other one has the rows 0 and 3."""
    here, there = make_rows(), make_rows()
    add(here, [0, 1])
    add(there, [3, 0])
    other = iter([torch.cat(getattr(there, f"column_{name}")) for name in there.columns])
    here.dist_sync_fn = lambda value, group: [value, next(other)]
    here.distributed_available_fn = lambda: True
    check(here.rows(), [0, 1, 3])
    assert not list(other)


@pytest.mark.parametrize(
    "columns",
    [
        {"latent": torch.zeros(2, 2)},
        {"latent": torch.zeros(2, 2), "label": torch.zeros(2), "more": torch.zeros(2)},
        {"latent": torch.zeros(1, 2), "label": torch.zeros(2)},
        {"latent": torch.zeros(3, 2), "label": torch.zeros(3)},
    ],
    ids=["missing", "unknown", "one of another length", "all of another length"],
)
def test_columns_that_do_not_fit_are_refused_and_nothing_is_added(columns: dict[str, Tensor]) -> None:
    rows = make_rows()
    with pytest.raises(ValueError, match=r"one value per image for each of \['index', 'latent', 'label'\]"):
        rows.update(torch.tensor([0, 1]), **columns)
    check(rows.rows(), [])


# By process: its batches. Samplers pad with copies, in a batch's midst or as a batch of their own.
SHARES = {
    "padded copies": [[[0, 2], [4]], [[1, 3, 0], []]],
    "a process of nothing but copies": [[[0, 1], [2]], [[2, 0]]],
    "a process without rows": [[[2, 1]], []],
    "the first one without rows": [[], [[4, 3]]],
    "no rows at all": [[], [[]]],
}


def gather(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = make_rows()
    results = {}
    for name, share in SHARES.items():
        for batch in share[rank]:
            add(rows, batch)
        results[name] = rows.rows()
        rows.reset()
    torch.save(results, folder / f"{rank}.pt")


def test_two_processes_both_have_every_image_once(tmp_path: Path) -> None:
    run_together(gather, tmp_path)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert results.keys() == SHARES.keys()
        for name, share in SHARES.items():
            check(results[name], sorted({i for batches in share for batch in batches for i in batch}))


def test_a_column_is_drawn() -> None:
    rows = DistinctRows(latent=torch.empty(0, 2), radius=torch.empty(0), label=torch.empty(0, dtype=torch.int64))
    radius = torch.tensor([0.5, 1.0, torch.inf, 2.0])
    rows.update(torch.arange(4), latent=torch.zeros(4, 2), radius=radius, label=torch.tensor([0, 0, 1, 1]))
    rows.update(torch.tensor([0]), latent=torch.zeros(1, 2), radius=radius[:1], label=torch.tensor([0]))  # a copy
    figure, axes = rows.plot()
    assert figure is axes.figure
    assert axes.get_xlabel() == "radius (1 not finite)"
    assert sum(patch.get_height() for patch in axes.patches) == 3
    _, axes = rows.plot({"label": torch.tensor([1, 1])}, column="label")
    assert axes.get_xlabel() == "label"
    assert sum(patch.get_height() for patch in axes.patches) == 2
    for column in ("latent", "depth"):
        with pytest.raises(ValueError, match=r"`column` to be one of \('index', 'radius', 'label'\)"):
            rows.plot(column=column)


def test_rows_stay_what_they_were_when_a_step_writes_into_its_buffers_again() -> None:
    rows, latent, label = make_rows(), torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    for position in range(3):
        rows.update(torch.tensor([position]), latent=latent.fill_(position), label=label.fill_(position))
    assert rows.rows()["label"].tolist() == [0, 1, 2]
    assert rows.rows()["latent"][:, 0].tolist() == [0.0, 1.0, 2.0]

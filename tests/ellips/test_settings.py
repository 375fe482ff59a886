"""What a run records of its settings: everything, in a form that can be compared with a file."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

import pytest
import torch

from ellips.settings import describe


@dataclass(frozen=True)
class Inner:
    size: int = 3
    _: KW_ONLY
    kind: str = "round"


@dataclass(frozen=True)
class Outer:
    rate: float = 0.5
    inner: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(1), Inner(2))
    limits: dict[str, float] = field(default_factory=lambda: {"low": 0.0})
    missing: str | None = None
    silent: bool = field(default=True, repr=False, compare=False)
    _known: dict[str, float] = field(default_factory=dict, init=False)


def test_every_argument_is_there_with_the_class_path_also_of_what_is_nested() -> None:
    inner = {"class_path": f"{__name__}.Inner", "size": 3, "kind": "round"}
    assert describe(Outer()) == {
        "class_path": f"{__name__}.Outer",
        "rate": 0.5,
        "inner": inner,
        "several": [{**inner, "size": 1}, {**inner, "size": 2}],
        "limits": {"low": 0.0},
        "missing": None,
        "silent": True,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 0.25},
        {"inner": Inner(4)},
        {"inner": Inner(kind="square")},
        {"several": (Inner(1),)},
        {"several": (Inner(1), Inner(2, kind="square"))},
        {"limits": {"low": 1.0}},
        {"missing": "no"},
        {"silent": False},
    ],
    ids=str,
)
def test_no_change_goes_unseen(change: dict[str, object]) -> None:
    assert describe(replace(Outer(), **change)) != describe(Outer())


def test_what_was_computed_meanwhile_is_no_setting() -> None:
    used = Outer()
    used._known["key"] = 1.0
    assert describe(used) == describe(Outer())


def test_classes_of_the_same_fields_are_told_apart() -> None:
    @dataclass(frozen=True)
    class Other:
        size: int = 3
        kind: str = "round"

    assert describe(Other()) != describe(Inner())


@pytest.mark.parametrize("settings", [Outer(limits={"low": float("inf")}), [Inner(), None, "text", 1, 2.5, True], ()])
def test_a_file_gives_back_what_was_described(settings: object) -> None:
    assert json.loads(json.dumps(describe(settings))) == describe(settings)


class Plain:
    """Settings that nobody could compare."""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Plain(), r"but got Plain; make .*\.Plain a frozen dataclass"),
        (Outer(missing=Plain()), "but got Plain"),  # type: ignore[arg-type]
        ([Inner(), [Plain()]], "but got Plain"),
        ({"a": torch.zeros(1)}, "but got Tensor"),
        (Path("somewhere"), "but got PosixPath"),
        ({1, 2}, "but got set"),
        (Inner, "but got type"),
    ],
    ids=["object", "in a field", "in a list", "tensor", "path", "set", "class"],
)
def test_what_cannot_be_compared_is_refused(settings: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        describe(settings)

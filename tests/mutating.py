"""The mutants of a module: its source with one operator, number or word written otherwise, by cosmic-ray's operators.

Its own list has a dozen replacements for each ``+``. Here are those that a slip of the pen would make, or one that
takes a bound away: one or two for each place.
"""

# ruff: noqa: ANN401 - the nodes of a syntax tree have no common type
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, ClassVar

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.number_replacer import NumberReplacer
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

_BINARY = "Add_Sub Sub_Add Mul_Div Div_Mul Pow_Mul Mod_Mul FloorDiv_Mul BitAnd_BitOr BitOr_BitAnd".split()
_COMPARED = "Lt_LtE Lt_Gt LtE_Lt LtE_GtE Gt_GtE Gt_Lt GtE_Gt GtE_LtE Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is".split()
_OTHERS = """AddNot NumberReplacer ReplaceAndWithOr ReplaceOrWithAnd ReplaceTrueWithFalse ReplaceFalseWithTrue
ReplaceUnaryOperator_Delete_Invert ReplaceUnaryOperator_Delete_Not ReplaceUnaryOperator_Delete_USub
ZeroIterationForLoop""".split()
_PAIRS = """max min;amax amin;maximum minimum;argmax argmin;any all;clamp_min clamp_max;floor ceil;ppf isf;cdf sf;
+= -=;&= |=;*= /=;ones zeros;low high;lower upper""".split(";")
_WRAPPED = "abs sqrt square clamp clamp_min masked_fill nan_to_num double reciprocal log exp mT".split()
# Where numbers name axes: another one mostly raises.
_PLACES = """unsqueeze squeeze flatten unflatten gather scatter_ sum mean amax amin argmax argmin argsort norm any all
view expand reshape diagonal cumsum repeat transpose aminmax select cat stack vector_norm index_select pad softmax
split log_softmax index_copy index_fill new_zeros zeros ones""".split()
_LEFT_OUT = {"decorator", "import_from", "import_name", "raise_stmt", "annassign", "tfpdef"}


class Swap(Operator):  # type: ignore[misc]
    """Writes another word or operator for one: ``max`` for ``min``, ``-=`` for ``+=``."""

    words: ClassVar = dict(pair.split() for pair in _PAIRS) | dict(pair.split()[::-1] for pair in _PAIRS)

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if not hasattr(node, "children") and node.value in self.words:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = self.words[node.value]
        return node

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class Halve(Operator):  # type: ignore[misc]
    """Halves a number with a point: for slack, which ±1 would take away altogether."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "number" and not node.value.isdigit():
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = repr(float(node.value.replace("_", "")) / 2)
        return node

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class Unwrap(Operator):  # type: ignore[misc]
    """Leaves a method out: ``x`` for ``x.abs()``."""

    def _calls(self, node: Any) -> list[int]:
        parts = getattr(node, "children", ()) if node.type in ("atom_expr", "power") else ()
        named = [getattr(p, "children", [None])[0] == "." and p.children[1].value in _WRAPPED for p in parts]
        return [i for i in range(len(parts) - 1) if named[i] and parts[i + 1].children[0] == "("]

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        return iter([(node.children[i].start_pos, node.children[i + 1].end_pos) for i in self._calls(node)])

    def mutate(self, node: Any, index: int) -> Any:
        start = self._calls(node)[index]
        del node.children[start : start + 2]
        return node

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


def _operators() -> list[Operator]:
    names = [f"ReplaceBinaryOperator_{x}" for x in _BINARY] + [f"ReplaceComparisonOperator_{x}" for x in _COMPARED]
    return [*(get_operator(f"core/{name}")() for name in (*names, *_OTHERS)), Swap(), Halve(), Unwrap()]


def _counts(node: Any, operator: Operator, index: int) -> bool:
    """Whether a mutation there could change a number in another way than its neighbours; annotations cannot."""
    number = node.type == "number"
    if number and isinstance(operator, NumberReplacer) and (not node.value.isdigit() or index != (node.value != "0")):
        return False  # 0 becomes 1, whole numbers one less; others are halved
    if node.type == "name" and node.parent.type in ("param", "argument") and node.parent.children[0] is node:
        return False
    inner, outer = node, node.parent
    while outer is not None:
        named = getattr(outer.children[0], "value", "") if outer.type == "argument" else ""
        if outer.type in _LEFT_OUT or named == "strict" or (number and named.startswith("dim")):
            return False
        if (outer.type == "funcdef" and inner.get_previous_sibling() == "->") or (
            outer.type == "param" and outer.annotation is inner
        ):
            return False
        if number and outer.type == "trailer" and outer.children[0] == "(":
            method = outer.get_previous_sibling()
            method = method.children[-1] if hasattr(method, "children") else method
            if getattr(method, "value", None) in _PLACES:
                return False
        if number and outer.type in ("trailer", "operator"):
            number = False  # only the nearest call counts
        inner, outer = outer, outer.parent
    return True


def mutants(source: str) -> dict[str, str]:
    """Return the mutants of a module by what is written otherwise: ``a line with [old -> new]``."""
    found: dict[str, str] = {}
    alike = Counter[str]()
    for operator in _operators():
        occurrence = 0
        for node in list(ast_nodes(get_ast(source))):
            for index, _ in enumerate(operator.mutation_positions(node)):
                mutant = mutate_code(source, operator, occurrence) if _counts(node, operator, index) else None
                occurrence += 1
                if mutant and mutant.split() != source.split() and mutant not in found.values() and _compiles(mutant):
                    name = _difference(source, mutant)
                    alike[name] += 1
                    found[name if alike[name] == 1 else f"{name} ({alike[name]})"] = mutant
    return found


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _difference(old: str, new: str) -> str:
    a, b = next((a.strip(), b.strip()) for a, b in zip(old.splitlines(), new.splitlines(), strict=False) if a != b)
    start = _common(a, b)
    end = len(a) - _common(a[start:][::-1], b[start:][::-1])
    while 0 < start < len(a) and re.match(r"\w[\w.]", a[start - 1 : start + 1]):
        start -= 1
    while start < end < len(a) and re.match(r"[\w.]\w", a[end - 1 : end + 1]):
        end += 1
    return f"{a[:start]}[{a[start:end].strip()} -> {b[start : len(b) - len(a) + end].strip()}]{a[end:]}"


def _common(a: str, b: str) -> int:
    """How many characters two lines begin with alike."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))

"""From a function to the graph of what it does, by torch.export; what cannot be captured is refused."""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type
from __future__ import annotations

import operator
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_flatten, tree_map

from ellips.lipschitz.capture.graph import JITTER, Graph, Node, UnprovenOperationError, is_random, jittered
from ellips.types import ImageMap
from ellips.validation import unchecked

aten = torch.ops.aten

_CURE = "use Clever or JacobianNorm (estimated), or SmoothedEncoder (probabilistic)"
_STATEMENTS = {aten._assert_tensor_metadata.default}  # says which type and device a tensor has; computes nothing
_FLOATS = (torch.float32, torch.float64)
_SETTLED = 1e-9  # by what share computed constants may move where every number on the way moves by JITTER


class _Wrapped(nn.Module):
    """A function as a module; what it is a method of comes along, so that its weights count as weights."""

    def __init__(self, function: ImageMap) -> None:
        super().__init__()
        self.function = function
        owner = getattr(function, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner

    def forward(self, image: Tensor) -> Tensor:
        """Map one image."""
        result = self.function(image)
        if type(result) is not Tensor and not isinstance(result, Tensor):
            raise TypeError(f"Expected the function to return a tensor but got {type(result).__name__}.")
        return result


def export(function: ImageMap, image: Tensor) -> Graph:
    """Capture what ``function`` does to one image.

    Args:
        function: Maps ``(1, C, H, W)`` to ``(1, d)``.
        image: Shape ``(1, C, H, W)``.

    Returns:
        The graph: it holds for every image of the shape, since nothing in it looks at pixel values.

    Raises:
        UnprovenOperationError: If the function cannot be captured, draws random numbers, changes anything or converts
            numbers to a narrower type.
    """
    module = _Wrapped(function)
    module.training = False  # of the wrapper alone: the function is taken as it is
    try:
        # Not strict: the function's own Python code runs, on tensors without values.
        with torch.no_grad(), unchecked(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (image.detach(),), strict=False)
            program = program.run_decompositions({})  # no operation in place, no nested autocast
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UnprovenOperationError(
            "Expected a function that torch.export can capture, without decisions by pixel values and without leaving "
            f"torch, but got {type(error).__name__}: {reason[0] if reason else ''} {_hint(error)}Otherwise {_CURE}."
        ) from error
    held: dict[str, tuple[Tensor, Tensor]] = {}
    graph = (reader := _Reader(program, held)).read()
    if not reader.computes:
        return graph
    precise, moved = (_Reader(program, held, jitter).read() for jitter in (0.0, JITTER))
    _require_alike(graph, precise, torch.inf)
    _require_alike(precise, moved, _SETTLED)
    return replace(graph, in_float64=precise, stored=tuple(held.values()))


def _hint(error: Exception) -> str:
    """Return what to do about a decision by the numbers of a tensor, which need not be pixels."""
    if "DataDependent" not in type(error).__name__:
        return ""
    return (
        "Something is decided by the numbers of a tensor, as by torchvision.transforms.Normalize whether its std is 0: "
        "subtract and divide by buffers instead, or give mean and std to FrozenEncoder. "
    )


def _require_alike(graph: Graph, other: Graph, tolerance: float) -> None:
    """Refuse constants that rounding moves by more than a share of their largest number, others than floats at all."""
    for one, two in zip(graph.nodes, other.nodes, strict=True):
        for a, b in zip(*(tree_flatten((node.args, node.kwargs))[0] for node in (one, two)), strict=True):
            if not isinstance(a, Tensor | float | int):
                continue
            x, y = (torch.as_tensor(value) for value in (a, b))
            alike = x.shape == y.shape
            if alike and not x.is_floating_point():
                alike = torch.equal(x, y)
            elif alike and x.numel() and tolerance < torch.inf:
                alike = bool(torch.linalg.vector_norm(x.double() - y.double()) <= tolerance * x.double().abs().amax())
            if not alike:
                raise UnprovenOperationError(
                    f"Expected constants that float64 can compute but those of `{one.op}` depend on how their "
                    f"computation is rounded; compute them beforehand, or {_CURE}."
                )


class _Reader:
    """Reads torch's graph: what depends on the image becomes nodes, everything else is computed.

    Args:
        program: The graph.
        held: Weights that were read already, by name, as they lie in the function and copied.
        jitter: None: constants are computed as the function does. Otherwise in float64, and moved at random by it.
    """

    def __init__(
        self, program: torch.export.ExportedProgram, held: dict[str, tuple[Tensor, Tensor]], jitter: float | None = None
    ) -> None:
        self.program = program
        self.held = held
        self.jitter = jitter
        self.generator = torch.Generator().manual_seed(0)
        self.computes = False  # constants, by operations that round
        self.values: dict[fx.Node, Any] = {}
        self.nodes: list[Node] = []
        self.source: Node | None = None

    @torch.no_grad()
    def read(self) -> Graph:
        """Return the graph."""
        signature = self.program.graph_signature
        if [spec.kind for spec in signature.output_specs] != [OutputKind.USER_OUTPUT]:
            kinds = ", ".join(sorted({spec.kind.name for spec in signature.output_specs}))
            raise UnprovenOperationError(
                f"Expected a function that returns one tensor and changes nothing but got {kinds}; remove operations "
                "in place on the image, and buffers that a call changes."
            )
        inputs = {spec.arg.name: spec for spec in signature.input_specs}
        found: Any = None
        for item in self.program.graph.nodes:
            if item.op == "placeholder":
                self.values[item] = self._placeholder(item, inputs[item.name])
            elif item.op == "call_function":
                self.values[item] = self._call(item)
            elif item.op == "output":
                found = self.values[item.args[0][0]]
            else:
                raise UnprovenOperationError(f"Expected plain operations but got a part of its own, `{item.target}`.")
        if self.source is None or not isinstance(found, Node):
            raise UnprovenOperationError("Expected the function's value to depend on the image but it does not.")
        if len(found.shape) != 2 or found.shape[0] != 1:
            raise ValueError(f"Expected the function to map one image to shape (1, d) but got {tuple(found.shape)}.")
        return Graph(self.source, self.nodes, found)

    def _placeholder(self, item: fx.Node, spec: Any) -> Any:
        if spec.kind is InputKind.USER_INPUT:
            example = item.meta["val"]
            self.source = Node(None, (), {}, example.shape, example.dtype, device=example.device)
            return self.source
        known = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}
        name = str(spec.target)
        if name in self.held:
            return self.held[name][1]
        held = self.program.state_dict.get(name, self.program.constants.get(name))
        plain = isinstance(held, Tensor) and type(held) in (Tensor, nn.Parameter) and not held.is_quantized
        if spec.kind not in known or not plain or held.layout is not torch.strided:
            raise UnprovenOperationError(
                f"Expected weights to be plain tensors but `{name}` is a {type(held).__name__} ({spec.kind.name})."
            )
        self.held[name] = (held.detach(), held.detach().clone())
        return self.held[name][1]

    def _call(self, item: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((item.args, item.kwargs), lambda x: self.values[x])
        target: Any = item.target
        if target is operator.getitem:
            whole, index = args
            assert isinstance(index, int)
            return self._part(item, whole, index)
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            raise UnprovenOperationError(
                f"Expected operations of torch itself but got `{_name(target)}`: branches, loops and custom operations "
                f"have no proven constant; {_CURE}."
            )
        if target in _STATEMENTS:
            return None
        _require_pure(target, args, kwargs)
        node = Node(target, tuple(args), dict(kwargs), torch.Size(), torch.float32)
        if not node.inputs:
            return self._computed(target, args, kwargs)
        example = item.meta.get("val")
        if not isinstance(example, Tensor):
            if isinstance(example, list | tuple) and all(isinstance(x, Tensor) or x is None for x in example):
                return node  # its parts are taken one by one
            raise UnprovenOperationError(
                f"Expected a function that treats all images alike but `{target}` reads values of the image."
            )
        return self._keep(node, example)

    def _computed(self, target: Any, args: Any, kwargs: Any) -> Any:
        rounds = not (target.is_view or target in _COPIES)
        self.computes |= rounds
        try:
            if (jitter := self.jitter) is None or not rounds:
                return target(*args, **kwargs)
            args, kwargs = tree_map(_widened, (args, kwargs))
            result = target(*args, **kwargs)
            return tree_map(lambda x: jittered(x, jitter, self.generator) if isinstance(x, Tensor) else x, result)
        except (RuntimeError, TypeError) as error:
            raise UnprovenOperationError(
                f"Expected constants that can be computed but `{target}` fails: {error}"
            ) from error

    def _part(self, item: fx.Node, whole: Any, index: int) -> Any:
        if not isinstance(whole, Node):
            return whole[index]
        return self._keep(Node(whole.op, whole.args, whole.kwargs, torch.Size(), whole.dtype, index), item.meta["val"])

    def _keep(self, node: Node, example: Tensor) -> Node:
        node.shape, node.dtype, node.device = example.shape, example.dtype, example.device
        if not all(isinstance(side, int) for side in node.shape):
            raise UnprovenOperationError(f"Expected shapes that do not depend on the image but `{node.op}` gives one.")
        floats = [part.dtype for part in node.inputs if part.dtype.is_floating_point]
        converts = node.op in _CONVERSIONS or any(isinstance(x, torch.dtype) for x in node.arguments().values())
        narrow = any(kind not in _FLOATS or _narrower(node.dtype, kind) for kind in floats)
        if node.dtype in floats and node.dtype not in _FLOATS:
            raise UnprovenOperationError(
                f"Expected arithmetic in one precision throughout, float32 or float64, but `{node.op}` computes in "
                f"{node.dtype}, whose rounding no constant covers; convert network and images by .float(), or use "
                "SmoothedEncoder (probabilistic)."
            )
        if narrow and (converts or node.dtype.is_floating_point):
            raise UnprovenOperationError(
                f"Expected arithmetic in one precision throughout but `{node.op}` makes {node.dtype} of {floats[0]}; "
                "leave out the conversion, or hand in images of the type that the network computes in."
            )
        self.nodes.append(node)
        return node


_COPIES = {aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default}
_CONVERSIONS = {aten._to_copy.default, aten.view.dtype, aten.to.dtype}


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


def _narrower(to: torch.dtype, of: torch.dtype) -> bool:
    return to != of and (to, of) != (torch.float64, torch.float32)


def _require_pure(target: torch._ops.OpOverload[..., Any], args: Any, kwargs: Any) -> None:
    """Refuse operations whose result is not a function of their arguments, or that change them."""
    random = is_random(target, args, kwargs)
    uninitialised = target._schema.name.rpartition("::")[2].removeprefix("new_").startswith("empty")
    if random or uninitialised or target._schema.is_mutable:
        what = "randomness" if random else "uninitialised memory" if uninitialised else "operations in place"
        raise UnprovenOperationError(
            f"Expected a function without {what} but got `{target}`; put the network into eval mode by .eval()."
        )


def _name(target: object) -> str:
    return getattr(target, "__name__", str(target))

"""The head in what others do with models: compiled, exported, mapped, cast, quantised, copied."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic

from ellips import EllipsHead
from ellips.errors import NotFittedError

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "diagonal": {},
    "low_rank": {"rank": 2},
    "roots": {"feature_power": 0.5},
}


def make_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    centers = 4 * torch.randn(3, 12, generator=generator)
    return centers[labels] + torch.randn(600, 12, generator=generator), labels


def make_head(kind: str = "full") -> EllipsHead:
    torch.manual_seed(0)
    options = {"latent_dim": 4, "hidden_dim": 16, "shrinkage": 0.1, **KINDS[kind]}
    options |= {} if kind == "roots" else {"covariance_type": kind}
    return EllipsHead(12, 3, **options).fit(*make_data()).eval()  # type: ignore[arg-type]


def export(head: nn.Module, features: Tensor) -> Callable[[Tensor], Tensor]:
    """The head as a graph that takes any number of rows."""
    rows = torch.export.Dim("rows")
    return torch.export.export(head, (features,), dynamic_shapes=({0: rows},)).module()


def compiled(head: nn.Module, features: Tensor) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    return torch.compile(head, fullgraph=True, backend="eager", dynamic=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [export, compiled])
def test_a_graph_of_the_head_gives_its_scores_for_any_number_of_rows(kind: str, write: Callable[..., Any]) -> None:
    head, (features, _) = make_head(kind), make_data()
    graph = write(head, features[:8])
    for rows in (3, 8, 600):  # 600: more than are scored at a time outside of graphs
        torch.testing.assert_close(graph(features[:rows]), head(features[:rows]), rtol=1e-12, atol=1e-10)
    assert bool(torch.isnan(graph(features[:3] * float("nan"))).all()), "what is not checked must not look like scores"


def test_onnx_has_the_heads_scores(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch writes ONNX with it")
    reference = pytest.importorskip("onnx.reference")
    head, (features, _) = make_head(), make_data()
    rows = {0: torch.export.Dim("rows")}
    torch.onnx.export(head, (features[:8],), tmp_path / "head.onnx", dynamo=True, dynamic_shapes=(rows,), verbose=False)
    evaluator = reference.ReferenceEvaluator(str(tmp_path / "head.onnx"))
    (scores,) = evaluator.run(None, {evaluator.input_names[0]: features[:20].numpy()})
    # onnx's evaluator adds float32 products in another order in the projector.
    torch.testing.assert_close(torch.from_numpy(scores), head(features[:20]).detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_and_its_jacobians(kind: str) -> None:
    head, (features, _) = make_head(kind), make_data()
    points = features[:5]

    def score(point: Tensor) -> Tensor:
        scores: Tensor = head(point.unsqueeze(0))[0]
        return scores

    torch.testing.assert_close(torch.func.vmap(score)(points), head(points), rtol=1e-6, atol=1e-5)
    jacobians = torch.func.vmap(torch.func.jacrev(score))(points)
    probe = points.clone().requires_grad_()
    (expected,) = torch.autograd.grad(head(probe)[:, 1].sum(), probe)
    torch.testing.assert_close(jacobians[:, 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("write", [export, compiled])
def test_a_head_without_gaussians_is_not_written_down(write: Callable[..., Any]) -> None:
    features, _ = make_data()
    with pytest.raises(Exception, match="fitted mixture") as refused:
        write(EllipsHead(12, 3, latent_dim=4, hidden_dim=16).eval(), features[:8])(features[:8])
    assert isinstance(refused.value, NotFittedError) or "NotFittedError" in str(refused.value)


def test_a_head_that_was_loaded_or_copied_is_written_down(tmp_path: Path) -> None:
    head, (features, _) = make_head(), make_data()
    other = EllipsHead(**head.config).eval()
    other.load_state_dict(head.state_dict())
    for same in (other, copy.deepcopy(head)):
        assert torch.equal(export(same, features[:8])(features), head(features))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_cast_to_half_precision_leaves_a_fitted_head_as_it_is(half: torch.dtype) -> None:
    head, (features, labels) = make_head(), make_data()
    expected = head(features)
    model = nn.ModuleDict({"encoder": nn.Linear(12, 12), "head": head}).to(half)
    assert model["encoder"].weight.dtype == half
    assert torch.equal(head(features), expected)
    assert head(features.to(half)).shape == expected.shape
    early = EllipsHead(12, 3, latent_dim=4, hidden_dim=16, shrinkage=0.1).to(half).fit(features, labels).eval()
    assert early.projector.feature_head.weight.dtype == half, "one that is not fitted follows its model"
    before = early(features)
    assert torch.equal(early.float()(features), before), "nor is it cast back"


def test_double_precision_is_followed() -> None:
    head, (features, _) = make_head(), make_data()
    expected = head(features)
    assert head.double().latents(features.double()).dtype == torch.float64
    torch.testing.assert_close(head(features.double()), expected, rtol=1e-3, atol=1e-3)


def quantised(head: EllipsHead) -> EllipsHead:
    copied: EllipsHead = quantize_dynamic(copy.deepcopy(head), {nn.Linear}, dtype=torch.qint8)
    return copied


def cast_alone(head: EllipsHead) -> EllipsHead:
    copied = copy.deepcopy(head)
    copied.projector.to(torch.bfloat16)
    return copied


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize(("change", "named"), [(quantised, "quantized"), (cast_alone, "bfloat16")])
def test_another_projector_is_refused_until_the_gaussians_are_fitted_to_it(
    change: Callable[[EllipsHead], EllipsHead], named: str
) -> None:
    head, (features, labels) = make_head(), make_data()
    other = change(head)
    for use in (other, other.latents):
        with pytest.raises(ValueError, match=rf"(?s)quantised or cast since.*{named}.*fit the Gaussians"):
            use(features)
    other.fit(features, labels)
    moved = other.latents(features)
    assert not torch.equal(moved, head.latents(features)), "the projector was not changed"
    accuracy = float((other(features).argmax(1) == labels).float().mean())
    assert accuracy > 0.7
    means = torch.stack([moved[labels == k].double().mean(0) for k in range(3)])
    torch.testing.assert_close(other.ellips.means, means, rtol=1e-4, atol=1e-4)


def test_a_head_alone_loads_neither_timm_nor_what_draws() -> None:
    """What torchmetrics itself loads counts as its own: matplotlib, where it is installed."""
    code = """
import sys
import torch, torchmetrics
before = set(sys.modules)
from ellips import ClassMoments, Ellips, EllipsHead
import ellips.losses
found = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(found & {"timm", "torchvision", "matplotlib", "sklearn", "pandas", "lightning", "huggingface_hub", "PIL"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    assert done.returncode == 0, done.stderr

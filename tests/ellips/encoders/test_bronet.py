from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ellips.audit.slopes import steepest_slopes
from ellips.encoders import BRONetArchitecture, LipschitzEncoder, export_encoder, import_bronet
from tests.ellips.encoders import test_liresnet

WIDTH, DIM, LINEAR = 6, 8, 2
SQUARES = {"neck_conv_type": "cholesky", "neck_linear_type": "cholesky", "dense_type": "cholesky"}
# What the published configurations say of the arrangement, with fewer and narrower layers.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar": {"input_size": 32, "depth": 2, "backbone_type": "bro", "backbone_weight_rank_ratio": 0.5, **SQUARES},
    "tiny_imagenet": {
        "input_size": 64, "depth": 2, "backbone_type": "bro", "backbone_weight_rank_ratio": 0.125,
        "neck_conv_type": "bro", "neck_linear_type": "bro", "dense_type": "bro", "dense_weight_rank_ratio": 0.125,
    },
    "imagenet": {
        "input_size": 224, "depth": 6, "depth_1": 2, "depth_2": 4, "backbone_type": "hybridbrov2",
        "backbone_weight_rank_ratio": 0.5, "neck_conv_type": "l2", "neck_linear_type": "cholesky",
        "neck_conv_patch_size": 8, "neck_conv_patch_size_2": 0, "dense_type": "cholesky",
    },
}  # fmt: skip


def settings(name: str, **changed: object) -> dict[str, Any]:
    model = {**PUBLISHED[name], "width": WIDTH, "act_name": "MinMax", "stem_kernel_size": 5, "backbone_centering": True}
    model = {**model, "dense_width": DIM, "linear_num": LINEAR, "use_lln": True, **changed}
    dataset = {"name": name, "num_classes": 10, "input_size": model.pop("input_size"), "ddpm": False}
    return {"model": model, "dataset": dataset, "training": {"lr": 1e-3}, "loss": {"eps": 0.14}}


def rank_of(width: int, ratio: float) -> int:
    return max(1, int(width * ratio))


def centre(rows: int, columns: int) -> Tensor:
    kernel = torch.zeros(rows, columns, 3, 3)
    kernel[torch.arange(columns), torch.arange(columns), 1, 1] = 1
    return kernel


def state_of(given: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under the names, and of the shapes, that the authors' program saves."""
    torch.manual_seed(0)
    model, side = given["model"], given["dataset"]["input_size"]
    hybrid, patch = "hybrid" in model["backbone_type"], model.get("neck_conv_patch_size", 4)
    depth = model["depth_2"] if hybrid else model["depth"]
    rank = rank_of(WIDTH, model["backbone_weight_rank_ratio"])
    stem = 14 if side == 224 else 5
    first = {32: 16, 64: 32, 224: 16}[side]
    last = (first + (2 * depth if "v2" in model["backbone_type"] else 0)) // patch
    state = {
        "stem.0.weight": torch.randn(WIDTH, 3, stem, stem) / stem,
        "stem.0.bias": torch.randn(WIDTH),
        "stem.0.init_x": torch.ones(1, 3, side, side),
        "conv.weights": torch.randn(depth, WIDTH, rank, 3, 3),
        "conv.gamma": torch.rand(depth, WIDTH, 1, 1, 1),
        "conv.bias": torch.randn(depth, WIDTH),
        "conv.running_mean": torch.randn(depth, WIDTH),
        "conv.identity": centre(WIDTH, rank),
        "conv.I_low": torch.eye(rank)[None, None, None],
        "conv.I_full": torch.eye(WIDTH)[None, None, None],
        "head.weight": torch.randn(10, DIM),
        "head.bias": torch.randn(10),
    }
    if hybrid:
        count = model["depth_1"]
        state |= {
            "conv_1.weights": torch.randn(count, WIDTH, WIDTH, 3, 3) / WIDTH,
            "conv_1.gamma": torch.rand(count, WIDTH, 1, 1, 1),
            "conv_1.bias": torch.randn(count, WIDTH),
            "conv_1.running_mean": torch.randn(count, WIDTH),
            "conv_1.identity": torch.stack([centre(WIDTH, WIDTH)] * count),
            "conv_1.init_x": torch.ones(1, count * WIDTH, first, first),
        }
    for name, kind, rows, columns in (
        ("kernel", model["neck_conv_type"], WIDTH, WIDTH * patch**2),
        ("weight", model["neck_linear_type"], DIM, WIDTH * last**2),
    ):
        if kind != "l2":
            state[f"neck.{name}"] = torch.randn(*((columns, rows) if kind == "bro" else (rows, columns)))
    state["neck.bias"] = torch.randn(DIM)
    state |= {"linear.identity": torch.eye(DIM), "linear.bias": torch.randn(LINEAR, DIM)}
    state["linear.gamma"] = torch.rand(LINEAR, DIM, 1)
    if model["dense_type"] == "bro":
        rank = rank_of(DIM, model["dense_weight_rank_ratio"])
        state["linear.weights"] = torch.randn(LINEAR, DIM, rank)
        state |= {"linear.residual_identity": torch.eye(DIM, rank), "linear.identity_half": torch.eye(rank)}
    else:
        state |= {"linear.weights": torch.randn(LINEAR, DIM, DIM), "linear.eval_weight": torch.zeros(LINEAR, DIM, DIM)}
    return state


def saved(folder: Path, name: str, state: dict[str, Tensor] | None = None, **changed: object) -> Path:
    given = settings(name, **changed)
    content = {"backbone": state_of(given) if state is None else state, "configs": given, "training_logs": ["Epoch 0"]}
    torch.save({**content, "start_epoch": 1, "current_iter": 7, "optimizer": {"state": {}, "param_groups": []}},
               folder / "a.pth")  # fmt: skip
    return folder / "a.pth"


# ------------------------------------------------------------------ the network as its paper and its program have it


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)


def by_cholesky(v: Tensor) -> Tensor:
    gram = v @ v.T
    lower = torch.linalg.cholesky(gram + gram.trace() / len(gram) / 1000 * torch.eye(len(gram)))
    return torch.linalg.inv(lower) @ v


def reflector(v: Tensor, ridge: float) -> Tensor:
    """``I - 2 V (V* V + eps)^-1 V*`` of a stack."""
    gram = v.mH @ v
    ridges = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(v.shape[-1])
    return torch.eye(v.shape[-2]) - 2 * v @ torch.linalg.inv(gram + ridges) @ v.mH


def made(v: Tensor, kind: str, rows: int, columns: int) -> Tensor:
    return by_cholesky(v) if kind == "cholesky" else reflector(v, 1e-5)[:rows, :columns]


def through_frequencies(x: Tensor, kernel: Tensor, *, growing: bool) -> Tensor:
    """A convolution on the padded torus by Fourier transforms of image and kernel, at all frequencies."""
    x = functional.pad(x, (1, 1, 1, 1))
    n = x.shape[-1]
    spectrum = torch.fft.fft2(kernel, (n, n), norm="ortho")
    if growing:  # the second version: conjugate, and moved by a pixel
        steps = torch.arange(n)[:, None] + torch.arange(n)
        spectrum = torch.exp(-2j * torch.pi * steps / n) * spectrum.conj()
    matrices = reflector(spectrum.permute(2, 3, 0, 1), 1e-7)
    z = torch.fft.ifft2(torch.einsum("uvij,njuv->niuv", matrices, torch.fft.fft2(x)))
    assert float(z.imag.abs().max()) < 1e-12
    return z.real if growing else z.real[:, :, 1:-1, 1:-1]


def as_trained(state: dict[str, Tensor], given: dict[str, Any], images: Tensor) -> Tensor:
    s, model = {name: value.double() for name, value in state.items()}, given["model"]
    kernel = s["stem.0.weight"]
    large = kernel.shape[-1] == 14
    x = functional.conv2d(images - 0.5, kernel, s["stem.0.bias"], stride=14 if large else 2, padding=0 if large else 2)
    x = halves(x)
    for i in range(len(s.get("conv_1.weights", ()))):
        branch = functional.conv2d(
            x, s["conv_1.gamma"][i] * s["conv_1.weights"][i] / model["depth_1"] ** 0.5, padding=1
        )
        x = halves(x + branch + (s["conv_1.bias"][i] - s["conv_1.running_mean"][i])[:, None, None])
    depth = len(s["conv.weights"])
    for i in range(depth):
        v = s["conv.identity"] + s["conv.weights"][i] * s["conv.gamma"][i] / depth**0.5
        x = through_frequencies(x, v, growing="v2" in model["backbone_type"])
        x = halves(x + (s["conv.bias"][i] - s["conv.running_mean"][i])[:, None, None])
    patch = model.get("neck_conv_patch_size", 4)
    if model["neck_conv_type"] == "l2":
        x = functional.lp_pool2d(x, 2.0, patch)
    else:
        square = made(s["neck.kernel"], model["neck_conv_type"], WIDTH, WIDTH * patch**2)
        x = functional.conv2d(x, square.reshape(WIDTH, WIDTH, patch, patch), stride=patch)
    x = x.flatten(1)
    x = halves(x @ made(s["neck.weight"], model["neck_linear_type"], DIM, x.shape[1]).T + s["neck.bias"])
    for i in range(LINEAR):
        inside = (
            s["linear.gamma"][i] * s["linear.weights"][i] / LINEAR**0.5
            + torch.eye(DIM)[:, : s["linear.weights"].shape[2]]
        )
        matrix = reflector(inside, 1e-7) if model["dense_type"] == "bro" else by_cholesky(inside)
        x = halves(x @ matrix.T + s["linear.bias"][i])
    return x


@contextmanager
def in_float64() -> Iterator[None]:
    """Layers in float64, so that what is computed of a checkpoint can be compared to the last digits."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_plain_layers_compute_what_the_checkpoint_does(name: str, tmp_path: Path) -> None:
    state, side = state_of(settings(name)), PUBLISHED[name]["input_size"]
    path = saved(tmp_path, name, state)
    with in_float64():
        architecture, network = import_bronet(path)
        images = torch.rand(2, 3, side, side)
        expected = as_trained(state, settings(name), images)
        torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    assert architecture.image_shape == (3, side, side)


# ------------------------------------------------------------------ what is proven


def orthogonal(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A stem whose windows do not overlap and have orthonormal rows, and residual branches of zeros."""
    stem = state["stem.0.weight"]
    side = 14 if stem.shape[-1] == 14 else 2
    rows = torch.linalg.qr(torch.randn(3 * side**2, WIDTH, dtype=torch.float64))[0].T.float()
    changed = {"stem.0.weight": functional.pad(rows.view(WIDTH, 3, side, side), (0, stem.shape[-1] - side) * 2)}
    return state | changed | {name: 0 * value for name, value in state.items() if name == "conv_1.gamma"}


def largest(state: dict[str, Tensor], given: dict[str, Any]) -> float:
    """The product of the norms of all matrices but the stem's and the residual convolutions'."""
    s, model = {name: value.double() for name, value in state.items()}, given["model"]
    patch = model.get("neck_conv_patch_size", 4)
    found = [made(s["neck.weight"], model["neck_linear_type"], DIM, max(s["neck.weight"].shape))]
    if model["neck_conv_type"] != "l2":
        found.append(made(s["neck.kernel"], model["neck_conv_type"], WIDTH, WIDTH * patch**2))
    for gamma, weight in zip(s["linear.gamma"], s["linear.weights"], strict=True):
        inside = gamma * weight / LINEAR**0.5 + torch.eye(DIM, weight.shape[1])
        found.append(reflector(inside, 1e-7) if model["dense_type"] == "bro" else by_cholesky(inside))
    return float(torch.stack([torch.linalg.matrix_norm(matrix, ord=2) for matrix in found]).prod())


def slope_of(network: nn.Module, shape: tuple[int, ...]) -> float:
    """The steepest secant that gradient ascent finds, in float64."""
    images = torch.rand(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    radius = torch.full((2,), 0.5, dtype=torch.float64)
    return float(steepest_slopes(network.double(), images, radius, steps=6, restarts=0).max())


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_orthogonal_is_proven_to_be(name: str, tmp_path: Path) -> None:
    """Matrices by Cholesky factors lose a little of their length, by the ridge; all else has the constant 1."""
    small = {"depth": 1} if name != "imagenet" else {"depth": 2, "depth_1": 1, "depth_2": 1, "neck_conv_patch_size": 6}
    given = settings(name, **small)
    state = orthogonal(state_of(given))
    architecture, network = import_bronet(saved(tmp_path, name, state, **small))
    constant = export_encoder(network, architecture, tmp_path / "a.safetensors")
    with in_float64():
        truth = largest(state, given)
    assert 0.01 < slope_of(network, architecture.image_shape) <= constant <= truth * (1 + 1e-4)
    if name == "tiny_imagenet":  # all of its matrices are reflectors
        assert constant == pytest.approx(1, abs=1e-4)


def test_an_exported_file_is_proven_anew_and_small(tmp_path: Path) -> None:
    state = state_of(settings("cifar", depth=1))
    state["stem.0.weight"] *= 3
    architecture, network = import_bronet(saved(tmp_path, "cifar", state, depth=1))
    constant = export_encoder(network, architecture, tmp_path / "a.safetensors")
    assert constant > 3  # a random stem is not 1-Lipschitz
    encoder = LipschitzEncoder(tmp_path / "a.safetensors")
    assert encoder.architecture == architecture
    assert encoder.constant <= 1.000001
    images = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(encoder(images), network(images) / constant, rtol=1e-5, atol=1e-6)
    # The file holds the kernels, not the matrices of all frequencies.
    assert (tmp_path / "a.safetensors").stat().st_size < (tmp_path / "a.pth").stat().st_size


# ------------------------------------------------------------------ what is refused

OTHERS: dict[str, tuple[dict[str, object], str]] = {
    "activation": ({"act_name": "HalfAbs"}, "`act_name`.*minmax.*'halfabs'"),
    "trained activation": ({"act_name": "hh2"}, "`act_name`"),
    "another orthogonal layer": ({"backbone_type": "lot"}, "`backbone_type`.*'lot'"),
    "no type": ({"backbone_type": "default"}, "`backbone_type`"),
    "no padding": ({"backbone_zero_padding": False}, "`backbone_zero_padding`"),
    "no identity": ({"backbone_quasi_residual": False}, "`backbone_quasi_residual`"),
    "no identity in linear layers": ({"dense_quasi_residual": False}, "`dense_quasi_residual`"),
    "not centred": ({"backbone_centering": False}, "`backbone_centering`"),
    "a second layer over squares": ({"neck_conv_patch_size_2": 2}, "`neck_conv_patch_size_2`"),
    "squares of no size": ({"neck_conv_patch_size": 0}, "`neck_conv_patch_size`"),
    "another size": ({"input_size": 48}, "`input_size`.*224.*48"),
    "another network": ({"type": "liresnet"}, "`type`"),
    "a first part that is not there": ({"backbone_type": "hybridbro"}, "conv_1"),
    "squares by reflectors": ({"neck_conv_type": "bro"}, r"`neck.kernel`.*\(96, 6\).*\(6, 96\)"),
    "a matrix by reflectors": ({"neck_linear_type": "bro"}, "`neck.weight`"),
    "linear layers by reflectors": ({"dense_type": "bro"}, "`linear.identity_half`"),
    "larger images": ({"input_size": 64}, r"`stem.0.init_x`.*\(1, 3, 64, 64\)"),
    "growing maps": ({"backbone_type": "brov2"}, "`neck.weight`"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_arrangements_are_refused_by_name(name: str, tmp_path: Path) -> None:
    changed, message = OTHERS[name]
    path = saved(tmp_path, "cifar", state_of(settings("cifar")), **changed)
    with pytest.raises(ValueError, match=rf"(?s)a\.pth to hold a BRONet.*{message}"):
        import_bronet(path)


ALTERED: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "not a number": ({"conv.gamma": torch.full((2, WIDTH, 1, 1, 1), torch.nan)}, "finite.*conv.gamma"),
    "infinite": ({"linear.bias": torch.full((LINEAR, DIM), torch.inf)}, "finite.*linear.bias"),
    "missing": ({"neck.kernel": None}, "`neck.kernel`"),
    "a shape that broadcasts": ({"conv.gamma": torch.ones(2, 1, 1, 1, 1)}, r"`conv.gamma`.*\(2, 6, 1, 1, 1\)"),
    "a shape that torch broadcasts too": ({"linear.gamma": torch.ones(1, DIM, 1)}, "`linear.gamma`"),
    "one mean for all": ({"conv.running_mean": torch.ones(1, WIDTH)}, "`conv.running_mean`"),
    "axes": ({"conv.weights": torch.ones(WIDTH, 3, 3, 3)}, "`conv.weights`.*5 axes"),
    "turned around": ({"neck.weight": torch.ones(WIDTH * 16, DIM)}, "`neck.weight`"),
    "as many directions as channels": ({"conv.weights": torch.ones(2, WIDTH, WIDTH, 3, 3)}, "`rank`"),
    "an identity that is none": ({"conv.identity": torch.zeros(WIDTH, 3, 3, 3)}, "`conv.identity`"),
    "a ridge of its own": ({"conv.I_low": 2 * torch.eye(3)[None, None, None]}, "`conv.I_low`"),
    "more than orthogonal": ({"conv.I_full": 3 * torch.eye(WIDTH)[None, None, None]}, "`conv.I_full`"),
    "an identity of linear layers": ({"linear.identity": 5 * torch.eye(DIM)}, "`linear.identity`"),
    "an odd stem": ({"stem.0.weight": torch.ones(WIDTH, 3, 4, 4)}, "even side"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERED)
def test_altered_checkpoints_are_refused(name: str, tmp_path: Path) -> None:
    changed, message = ALTERED[name]
    state = {key: value for key, value in {**state_of(settings("cifar")), **changed}.items() if value is not None}
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        import_bronet(saved(tmp_path, "cifar", state))


@pytest.mark.parametrize("name", ["stem.0.weight", "conv_1.weights", "conv.weights", "neck.weight", "linear.gamma"])
def test_only_layers_that_are_not_orthogonal_grow(name: str, tmp_path: Path) -> None:
    state, grows = state_of(settings("imagenet")), name in ("stem.0.weight", "conv_1.weights")
    plain, scaled = (
        import_bronet(saved(tmp_path, "imagenet", weights))[1] for weights in (state, {**state, name: 9 * state[name]})
    )
    ratio = 1.0
    for one, other in zip(plain, scaled, strict=True):
        if isinstance(one, nn.Conv2d | nn.Linear):  # reflectors are looked at in their own tests
            a, b = (torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2) for layer in (one, other))
            ratio *= float(b / a)
    assert ratio > 4 if grows else 0.99 < ratio < 1.01


def test_a_file_without_settings_needs_them(tmp_path: Path) -> None:
    """Tensors of these shapes may be of several networks: whose maps grow, with other squares, or other activations."""
    state, given = state_of(settings("cifar")), settings("cifar")
    torch.save(state, tmp_path / "a.pth")
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")
    for file in ("a.pth", "a.safetensors"):
        with pytest.raises(ValueError, match=r"leave open.*config\.yaml"):
            import_bronet(tmp_path / file)
        assert import_bronet(tmp_path / file, given)[0] == BRONetArchitecture(
            width=WIDTH, rank=3, depth=2, linear_depth=LINEAR, feature_dim=DIM
        )
    path = saved(tmp_path, "cifar", state)
    assert import_bronet(path, given)[0] == import_bronet(path)[0]
    with pytest.raises(ValueError, match=r"carries.*`settings` says"):
        import_bronet(path, settings("cifar", dense_type="bro"))


def test_what_is_no_bronet_is_refused(tmp_path: Path) -> None:
    given = settings("cifar")
    contents = {
        "list": ([1], "state dict"),
        "tensors of another network": ({"backbone": test_liresnet.checkpoint(), "configs": given}, "BRONet"),
        "settings of another": ({"backbone": state_of(given), "configs": {"model": {"depth": 2}}}, "backbone_type"),
        "code": ({"backbone": state_of(given), "configs": given, "optimizer": Path("a")}, "nothing of it was run"),
    }  # fmt: skip
    for name, (content, message) in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=message):
            import_bronet(tmp_path / f"{name}.pth")
    with pytest.raises(FileNotFoundError, match="correct the path"):
        import_bronet(tmp_path / "none.pth")
    with pytest.raises(NotImplementedError, match="import_bronet"):
        BRONetArchitecture().trainable()


@pytest.mark.parametrize(
    "changed",
    [{"width": 5}, {"feature_dim": 7}, {"rank": 512}, {"rank": 0}, {"depth": 0}, {"residual_depth": -1}, {"patch": 3},
     {"patch": 0}, {"stem": (5, 2)}, {"stem": (5, 0, 2)}, {"stem": (5, 2, 0)}, {"image_shape": (3, 32, 64)}],
    ids=str,
)  # fmt: skip
def test_impossible_sizes_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        BRONetArchitecture(**changed)  # type: ignore[arg-type]


def test_what_weights_leave_open_is_told() -> None:
    assert BRONetArchitecture().untold == ""
    assert BRONetArchitecture(growing=True, patch=8, norms=True).untold == "growing=True, patch=8, norms=True"

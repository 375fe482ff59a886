"""What CONTRIBUTING and the files for a public repository say is true: paths exist, blocks run, targets are there."""

from __future__ import annotations

import pickle
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ellips import Ellips, FrozenEncoder, ImageClassifier
from ellips.audit import AttackSettings, audit_series, verdict
from ellips.commands.certify import certify_parser, instantiate
from ellips.commands.training import train
from ellips.files import ImageRecord, records_from_certificate
from ellips.head import EllipsHead
from ellips.input_certifiers import ByConstant, Chain, as_certifier
from ellips.lipschitz import JacobianNorm, KnownConstant, SpectralProduct
from ellips.losses import Objective
from ellips.settings import describe
from ellips.splits import digits_part
from ellips.types import Series
from tests.shipped import arguments

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|yaml)\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL)
TABLE = TEXT.partition("## Where is X?")[2].partition("\n## ")[0]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[0-9]*.yml"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


# ---------------------------------------------------------------------- the table


def rows() -> list[tuple[str, list[str]]]:
    cells = [line.strip("|").split("|") for line in TABLE.splitlines() if line.startswith("| ")]
    return [(what.strip(), re.findall(r"`([^`]+)`", where)) for what, where in cells if where.strip()][1:]


def exists(path: str) -> bool:
    return (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_every_row_of_the_table_names_files_that_exist() -> None:
    assert len(rows()) >= 30
    for what, paths in rows():
        assert paths, what
        assert [path for path in paths if not exists(path)] == [], what


def test_every_path_on_the_pages_exists() -> None:
    folders = r"(?:ellips|lightning_modules|datamodules|callbacks|commands|configs|benchmarks|tests|docs)"
    pages = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
    for page in ("CONTRIBUTING.md", "SECURITY.md", *pages):
        text = (ROOT / page).read_text(encoding="utf-8")
        found = re.findall(rf"(?<![\w/.]){folders}/(?:[\w./-]*\w\.\w+|[\w/]*/|(?=`))", text)
        assert [path for path in found if not exists(path)] == [], page


def test_every_part_of_the_project_has_a_row() -> None:
    named = [path for _, paths in rows() for path in paths]
    folders = [path.parent.relative_to(ROOT) for path in ROOT.glob("ellips/**/__init__.py")]
    folders += [Path(name) for name in ("lightning_modules", "datamodules", "callbacks", "commands", "benchmarks")]
    for folder in folders:
        assert any(path.startswith(f"{folder.as_posix()}/") for path in named), folder


# ---------------------------------------------------------------------- the blocks


@pytest.fixture
def block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a Python block by its name; all blocks lie in the folder of the test, each in its own file."""
    assert "```python" not in re.sub(r"```python\n# \S+\.py\n", "", TEXT), "a block without a name"
    for _, name, text in BLOCKS:
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [Path(name).stem for kind, name, _ in BLOCKS if kind == "python"]
    yield lambda name: import_module(name)
    for name in names:
        sys.modules.pop(name, None)


def test_every_block_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(BLOCKS) == 9
    for kind, name, _ in BLOCKS:
        assert f'"{name if kind == "yaml" else Path(name).stem}"' in source, name


def save_digits(folder: Path) -> None:
    for split in ("train", "val", "test"):
        images, labels = digits_part(split)
        np.savez(folder / f"{split}.npz", images=(255 * images).round().byte().numpy(), labels=labels.numpy())


def test_the_data_set(block: Callable[[str], ModuleType], tmp_path: Path) -> None:
    save_digits(tmp_path)
    encoder = FrozenEncoder("test_resnet", weights="digits")
    names = [str(digit) for digit in range(10)]
    data = block("my_data").NpzDataModule(encoder, tmp_path, names, batch_size=600, cache_dir=tmp_path / "cache")
    assert (data.num_classes, data.feature_dim) == (10, 96)
    data.setup("fit")
    batches = list(data.fit_dataloader())
    images, labels = digits_part("train")
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(len(labels)))
    assert torch.equal(torch.cat([batch.label for batch in batches]), labels)
    expected = encoder((255 * images).round() / 255)
    torch.testing.assert_close(torch.cat([batch.feature for batch in batches]), expected, rtol=1e-4, atol=1e-4)
    assert data.source("train").identity() != data.source("test").identity()


def test_the_data_set_and_the_loss_train_from_their_yaml(block: Callable[[str], ModuleType], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    save_digits(tmp_path / "images")
    block("my_data")
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    settings |= {"enable_progress_bar": "false", "enable_model_summary": "false"}
    trainer = [f"--trainer.{name}={value}" for name, value in settings.items()]
    cli = train(["fit", "--config", "my_data.yaml", "--config", "my_losses.yaml", "--name", "mine", *trainer])
    assert type(cli.datamodule).__name__ == "NpzDataModule"
    assert [type(loss).__name__ for loss in cli.model.objective.losses] == ["ScoreCrossEntropy", "ClassScatter"]
    logged = (tmp_path / "runs/mine/metrics.csv").read_text(encoding="utf-8")
    assert "train/ClassScatter" in logged.splitlines()[0]
    assert (tmp_path / "runs/mine/checkpoints/last.ckpt").is_file()


def test_the_loss(block: Callable[[str], ModuleType]) -> None:
    loss = block("my_losses").ClassScatter(weight=0.5)
    labels = torch.tensor([0, 0, 0, 3, 3, 7])
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    parts = [z[labels == k] - z[labels == k].mean(0) for k in (0, 3, 7)]
    torch.testing.assert_close(loss(z, labels), torch.cat(parts).square().sum(1).mean())
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (z,))
    torch.testing.assert_close(Objective([loss])(z, labels)["loss"], 0.5 * loss(z, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(z.detach().float(), labels)
    assert torch.equal(inside, loss(z.detach().float(), labels))


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval().requires_grad_(False)


def test_the_source(block: Callable[[str], ModuleType]) -> None:
    kind = block("my_sources").SmallerConstant
    images = torch.rand(3, 1, 4, 4)
    proven = SpectralProduct()(small_network(), images)
    bound = kind(SpectralProduct(), KnownConstant(1000.0))(small_network(), images)
    assert torch.equal(bound.constant, proven.constant)
    assert bound.soundness == "deterministic"
    assert bound.diagnostics["second_is_smaller"].tolist() == [0.0] * 3
    assert kind(SpectralProduct(), JacobianNorm())(small_network(), images).soundness == "estimated"
    with pytest.raises(ValueError, match="add up"):
        kind(SpectralProduct(), KnownConstant(1.0, soundness="probabilistic"))(small_network(), images)
    recorded = describe(kind(SpectralProduct(), KnownConstant(1000.0)))
    assert recorded["second"]["constant"] == 1000.0


def test_the_attack_on_the_source(block: Callable[[str], ModuleType]) -> None:
    tests = {name: test for name, test in vars(block("test_my_sources")).items() if name.startswith("test_")}
    assert len(tests) == 2
    for test in tests.values():
        test()


def certifiers_of(name: str) -> list[Any]:
    parser = certify_parser()
    given = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    data = yaml.safe_load((ROOT / "configs/data/digits.yaml").read_text(encoding="utf-8"))["data"]
    chosen = instantiate(parser, parser.parse_object({"data": data, **given}))
    return [as_certifier(certifier) for certifier in chosen["certifiers"]]


def test_source_and_certifier_are_built_from_their_yaml(block: Callable[[str], ModuleType]) -> None:
    (source,) = certifiers_of("my_sources.yaml")
    smaller = block("my_sources").SmallerConstant
    assert source == ByConstant(smaller(SpectralProduct(), KnownConstant(1000.0)))
    assert certifiers_of("my_certifiers.yaml") == [block("my_certifiers").FirstOrder(0.3)]


def test_the_certifier_is_exact_where_margins_are_linear(block: Callable[[str], ModuleType]) -> None:
    certifier = block("my_certifiers").FirstOrder(ball_radius=100.0)
    eye = torch.eye(3, dtype=torch.float64)
    # Equal covariances: the margins are linear, and the distance to the boundary is that of a plane.
    mixture = Ellips.from_parameters(2 * eye, eye.expand(3, 3, 3), torch.full((3,), 1 / 3))
    images = torch.rand(20, 1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latents = 0.5 * images.flatten(1)
    exact = mixture.certify(latents)
    found = certifier.certify(Chain(lambda x: 0.5 * x.flatten(1), mixture), images, latents, exact)
    torch.testing.assert_close(found.radius, exact.radius / 0.5)
    assert torch.equal(found.rival, exact.rival)
    assert (found.soundness, found.space) == ("estimated", "input")
    assert certifier.series("exact") == Series("input", "margin", "first-order")
    with pytest.raises(ValueError, match="ball_radius"):
        replace(certifier, ball_radius=0.0)


def test_the_certifier_on_digits_is_audited(block: Callable[[str], ModuleType]) -> None:
    pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")
    encoder = FrozenEncoder("test_resnet", weights="digits")
    images, labels = (part[:200] for part in digits_part("val"))
    head = EllipsHead(96, 10, latent_dim=None, shrinkage=0.5).fit(encoder(images), labels)
    classifier, certifier = ImageClassifier(encoder, head), block("my_certifiers").FirstOrder()
    certificate = classifier.certify(images[:4], certifier)
    assert (certificate.radius > 0).all()
    records: list[ImageRecord] = records_from_certificate(
        certificate, torch.arange(4), labels[:4], series=certifier.series("exact"), seconds=0.0
    )
    quick = AttackSettings(steps=5, restarts=1, autoattack_points=0, queries=20, batch_size=4)
    found = audit_series(records, images[:4], certifier.target(classifier.chain), quick)
    assert verdict(found)["attacked"] == 4
    assert verdict(found)["passed"] is None  # an estimate promises nothing


# ---------------------------------------------------------------------- the files for a public repository


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pages = ["CONTRIBUTING.md", ".pre-commit-config.yaml", ".github/pull_request_template.md"]
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in pages]
    texts += [path.read_text(encoding="utf-8") for path in WORKFLOWS]
    named = set(re.findall(r"(?:`|run: )make ([a-z-]+)", "\n".join(texts)))
    assert {"test", "lint", "test-lowest", "test-wheel"} <= named
    assert [target for target in sorted(named) if f"\n{target}:" not in makefile] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_read_only_and_end(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 90
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_ci_runs_every_supported_python_and_the_lowest_versions() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert project["requires-python"] == f">={pythons[0]}"
    ran = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert (ran["test"], ran["lint"], ran["lowest"]) == (["make test"], ["make lint"], ["make test-lowest"])
    assert ran["wheel"][-1] == "make test-wheel"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_complete(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "labels", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert {field["type"] for field in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    for field in fields:
        assert field["attributes"]["label"]
        options = field["attributes"].get("options", [])
        assert len(set(options)) == len(options)
        assert bool(options) == (field["type"] == "dropdown")


def test_what_the_forms_ask_for() -> None:
    forms = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in FORMS]
    assert [form["name"] for form in forms] == ["A certificate that does not hold", "Bug", "Feature"]
    assert "priority: highest" in forms[0]["labels"]
    assert {"command", "config", "versions", "soundness"} <= {field["id"] for field in forms[1]["body"]}
    for page in ("CONTRIBUTING.md", "SECURITY.md"):
        assert forms[0]["name"] in (ROOT / page).read_text(encoding="utf-8")
    yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/config.yml").read_text(encoding="utf-8"))


def test_hooks_agree_with_the_linters() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    assert {"end-of-file-fixer", "trailing-whitespace", "check-yaml", "check-toml"} <= hooks.keys()
    for name, tool in (("ruff-check", "ruff check"), ("ruff-format", "ruff format"), ("mypy", "mypy")):
        assert hooks[name]["entry"].startswith(f".venv/bin/{tool}")


# ---------------------------------------------------------------------- what SECURITY promises


class _Hostile:
    """An object whose pickle makes a file where it is read."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.witness,)


def read_by_lightning(path: Path) -> None:
    train(["test", *arguments("data/digits", "model/digits"), "--ckpt_path", str(path)])


@pytest.mark.parametrize(
    ("suffix", "read"),
    [
        (".ckpt", EllipsHead.from_checkpoint),
        (".ckpt", read_by_lightning),
        (".pth", lambda path: FrozenEncoder("test_resnet", weights=path)),
        (".bin", lambda path: FrozenEncoder("test_resnet", weights=path)),
    ],
    ids=["head", "lightning", "pth", "bin"],
)
def test_hostile_files_run_nothing(
    suffix: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    witness, path = tmp_path / "witness", tmp_path / f"hostile{suffix}"
    torch.save({"head": {}, "state_dict": {"weight": torch.ones(1)}, "x": _Hostile(witness)}, path)
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r"weights_only|Weights only|can run code"):
        read(path)
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists(), "the file is not hostile, so that the test would hold of anything"


def test_checkpoints_are_read_as_data_with_every_supported_torch() -> None:
    # Before 2.6 torch ran what a file names unless it was told not to, and one way to do so was left open.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (lowest,) = [found[1] for line in project["dependencies"] if (found := re.match(r"torch>=([\d.]+)", line))]
    assert tuple(map(int, lowest.split(".")[:2])) >= (2, 6)

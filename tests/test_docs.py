"""What the pages of docs/ show is run: Python blocks, configurations, commands, the notebook; what they name exists.

Pages are read in one order and in one folder, so that a page can build on the runs of those before it. Commands run
in this process, with fewer epochs, images and attacks than they would. What needs a cluster, images that are not here,
or minutes, is taken apart by the command's own parser and not run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from glob import glob
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import NamedTuple

import pytest
import torch
import yaml
from PIL import Image

from ellips.commands import main
from ellips.commands.program import COMMANDS
from ellips.files import ImageRecord, write_tsv
from ellips.files.table import TABLE_HEADER
from ellips.splits import digits_part
from tests.ellips.encoders.test_liresnet import checkpoint

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    "index",
    "method",
    "own_pictures",
    "plug_in",
    "cluster",
    "reading",
    "promises",
    "choosing",
    "training",
    "results",
]
PAGES += ["loggers", "formats", "reliability"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)

FIT = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --trainer.enable_progress_bar false"
FIT += " --trainer.enable_model_summary false --trainer.accelerator cpu"
LIGHTER = {
    "fit": f"{FIT} --model.shrinkage 0.5 --model.hidden_dim 64",
    "test": "--trainer.enable_progress_bar false --trainer.accelerator cpu --model.hidden_dim 64",
    "certify": "--max 1 --trainer.accelerator cpu",
    "audit": "--max 1 --attack.steps 2 --attack.restarts 1 --attack.autoattack_points 0 --attack.queries 2",
    "encode": "--accelerator cpu",
}
"""What is added to a command to make it small."""

THEIRS = """
from torch import nn


class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
"""
"""A classifier of somebody else."""

NEEDS_A_CLUSTER = ("sbatch", "torchrun")
NEEDS_MORE = re.compile(r"imagenet|noisy|--trainer\.devices 2")


class Block(NamedTuple):
    """One fenced block."""

    page: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return [Block(page, language, body) for language, body in BLOCK.findall(text)]


def commands(text: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """The commands of a shell block as lists of words, with the variables of it and of earlier ones put in."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(Template(line).substitute(variables), comments=True)
        assigned = [word for word in words if re.match(r"^[A-Z]+=", word)]
        variables |= dict(word.split("=", 1) for word in assigned)
        words = [word for word in words if word not in assigned]
        if words:
            yield words


def normalized(words: list[str]) -> list[str]:
    """What is run in a clone as the command that it stands for."""
    for script, name in (("train.py", []), ("certify.py", ["certify"])):
        if words[:2] == ["python", script]:
            return ["ellips", *name, *words[2:]]
    return words


def save_pictures(folder: Path) -> None:
    """Digits as colour pictures of 32 x 32, in folders of three classes."""
    for split, count in (("train", 12), ("test", 4)):
        images, labels = digits_part(split)
        for name, label in (("cat", 0), ("dog", 1), ("horse", 2)):
            (folder / split / name).mkdir(parents=True)
            for number, image in enumerate(images[labels == label][:count]):
                pixels = (255 * image[0]).round().byte().numpy()
                Image.fromarray(pixels).convert("RGB").resize((32, 32)).save(folder / split / name / f"{number}.png")


@pytest.fixture
def tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the pages are read in, and started in."""
    save_pictures(tmp_path / "pictures")
    (tmp_path / "their_module.py").write_text(THEIRS, encoding="utf-8")
    write_tsv(tmp_path / "theirs.tsv", [ImageRecord(i, i, 0, 0.1, 0.1) for i in range(2)])
    torch.save(checkpoint(), tmp_path / "liresnet.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str], done: set[str], folder: Path) -> None:
    words = normalized(words)
    text = " ".join(words)
    if text in done:
        return
    done.add(text)
    if words[0] in NEEDS_A_CLUSTER or (words[0] == "ellips" and NEEDS_MORE.search(text)):
        parse(words, folder)
    elif words[0] == "ellips":
        if words[1] == "configs" and (folder / words[2]).exists():
            return
        if words[1] == "collect":  # of a sweep that would have run on the cluster
            for value in ("0.1", "0.3"):
                shutil.copytree("runs/digits", f"runs/shrinkage-{value}")
        words = [path for word in words for path in (sorted(glob(word)) if "*" in word else [word])]
        lighter = shlex.split(LIGHTER.get(words[1], ""))  # the last of two values counts
        lighter += ["--voting.copies", "20"] if "--tsv" in words else []
        code = main([*words[1:], *lighter])
        assert code == 0 or "--tsv" in words, text  # that table is made up, and found out
    else:
        check_name(words)


def parse(words: list[str], folder: Path) -> None:
    """Take a command apart that cannot be run here, as the batch script hands it on."""
    if words[0] == "sbatch":
        given = next(i for i, word in enumerate(words) if word.endswith("run.sbatch"))
        assert (folder / words[given]).is_file()
        assert subprocess.run(["bash", "-n", str(folder / words[given])], check=False).returncode == 0
        words = ["ellips", *words[given + 1 :]]
    elif words[0] == "torchrun":
        words = ["ellips", *words[words.index("train.py") + 1 :]]
    assert words[1] in COMMANDS
    for name, value in pairwise(words):
        assert name != "--config" or (folder / value).is_file(), value
    if words[1] in ("fit", "certify"):
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], "--print_config"])
        assert ended.value.code == 0
    elif words[1] == "plan":
        assert main(words[1:]) == 0


def check_name(words: list[str]) -> None:
    """Of what is not run: make targets, extras and modules exist."""
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    else:
        assert words[:2] == ["pip", "install"], words


def test_what_the_pages_show_runs(tour: Path) -> None:
    # One test: spread over processes, pages would not find the runs of those before them.
    done: set[str] = set()
    assert main(["configs", "configs"]) == 0
    for page in PAGES:
        print(f"--- {page}")  # shown where it fails
        run_page(page, done, tour)


def run_page(page: str, done: set[str], folder: Path) -> None:
    names: dict[str, object] = {"__name__": page}
    variables: dict[str, str] = {}
    torch.manual_seed(0)
    for block in blocks(page):
        match block.language:
            case "python":
                exec(compile(block.text, f"{page}.md", "exec"), names)
            case "sh":
                for words in commands(block.text, variables):
                    run(words, done, folder)
            case "yaml":
                content = yaml.safe_load(block.text)
                assert content, block.text
                if named := re.match(r"# (\S+\.yaml)\n", block.text):
                    text = block.text.replace("num_samples: 1000", "num_samples: 50")
                    (folder / named[1]).write_text(text, encoding="utf-8")
            case other:
                assert other == "text", f"a block in {page} that nobody runs: {other}"


def test_every_page_is_read_here_and_on_the_site() -> None:
    written = {path.stem for path in DOCS.glob("*.md")}
    assert written == set(PAGES)
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2].partition("\n\n")[0]
    listed = set(re.findall(r": (\S+)\.md", nav))
    assert listed >= set(PAGES) | {f"reference/{path.stem}" for path in (DOCS / "reference").glob("*.md")}


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((DOCS / "notebooks" / "digits.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    for cell in cells:
        exec(re.sub(r"^%.*\n", "", cell), names)
    assert len(cells) >= 6


def test_the_figures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    script = (DOCS / "figures.py").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "figures", "__file__": str(DOCS / "figures.py")}
    exec(script, names)
    drawn = {path.name for path in names["draw"](tmp_path)}  # type: ignore[operator]
    kept = {path.name for path in (DOCS / "images").glob("method_*.svg")}
    assert drawn == kept
    used = set(re.findall(r"images/([\w.]+)", (DOCS / "method.md").read_text(encoding="utf-8")))
    assert used == kept


def test_every_column_of_the_table_is_explained() -> None:
    page = (DOCS / "formats.md").read_text(encoding="utf-8").partition("### `certificates.csv`")[2].partition("###")[0]
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE))))
    assert explained == set(TABLE_HEADER)


def test_nothing_is_fetched_by_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in text
    assert "://" not in text
    assert "@import" not in (DOCS / "stylesheets" / "extra.css").read_text(encoding="utf-8")

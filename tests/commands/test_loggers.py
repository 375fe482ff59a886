"""Run folders are guarded whatever the logger: nothing is overwritten, and a start that failed blocks no name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from ellips.commands import main
from ellips.commands.messages import in_one_message
from ellips.files import RunFolder
from tests.commands.test_user_mistakes import DIGITS, QUIET

FIT = f"fit --config digits.yaml --config logger.yaml {QUIET} --model.latent_dim=null --trainer.max_epochs=1"
Start = Callable[[str], int]
LOGGERS = {
    "TensorBoardLogger": ("tensorboard", "{save_dir: runs, name: board}"),
    "WandbLogger": ("wandb", "{save_dir: runs, project: digits, offline: true}"),
}


@pytest.fixture(params=list(LOGGERS))
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """What starts a fit with a logger, in an empty folder, and returns its exit code."""
    package, arguments = LOGGERS[request.param]
    if find_spec(package) is None:
        pytest.skip(f"{request.param} needs the package {package}")
    (tmp_path / "digits.yaml").write_text(DIGITS)
    logger = f"class_path: lightning.pytorch.loggers.{request.param}\n    init_args: {arguments}"
    (tmp_path / "logger.yaml").write_text(f"trainer:\n  logger:\n    {logger}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")

    def start(given: str) -> int:
        code = in_one_message(main, [*FIT.split(), *given.split()])
        if package == "wandb":  # whose runs end with their process, of which there is one here
            import_module(package).finish()
        return code

    return start


def test_runs_stay_apart_and_none_is_overwritten(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = RunFolder.named("first"), RunFolder.named("second")
    assert start("--name first") == 0
    before = {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()}
    assert first.best in before
    assert start("--name first --model.shrinkage=0.9") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert start("--name second --model.shrinkage=0.9") == 0
    assert second.best.is_file()
    assert {path: path.read_bytes() for path in before} == before
    assert start("--name first --ckpt_path last") == 0


def test_a_start_that_failed_blocks_no_name(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    singular = "--name once --model.regularization=null --model.shrinkage=0 --model.pooling=0"
    assert start(singular) == 2
    assert "shrinkage" in capsys.readouterr().err
    assert start("--name once") == 0
    assert RunFolder.named("once").best.is_file()

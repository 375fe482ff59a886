"""The wheel alone: its commands run on the digits where there is no clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and with what it needs from this one, but without this one's clone."""
    folder = tmp_path_factory.mktemp("wheel")
    run = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*run, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("ellips-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*run, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # A path in a .pth file is searched, but the .pth files in it, an editable install's among them, are not read.
    (site,) = folder.glob("venv/lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv" / "bin"


def run(environment: Path, folder: Path, *command: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(environment / command[0]), *command[1:]],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def test_nothing_of_the_clone_is_seen(environment: Path, tmp_path: Path) -> None:
    names = "callbacks", "datamodules", "lightning_modules", "commands"
    code = f"""
import importlib.util, ellips, ellips.callbacks, ellips.commands
print(ellips.__file__, ellips.callbacks.__file__, ellips.commands.__file__)
assert not [n for n in {names} if importlib.util.find_spec(n)], "the top level is not ours"
"""
    printed = run(environment, tmp_path, "python", "-c", code)
    assert printed.count(str(environment.parent)) == 3
    assert str(ROOT) not in printed


def test_the_registry_of_encoders_is_there(environment: Path) -> None:
    (installed,) = environment.parent.glob("lib/python*/site-packages/ellips/encoders/registry.toml")
    assert installed.read_bytes() == (ROOT / "ellips" / "encoders" / "registry.toml").read_bytes()


def test_a_project_of_someone_else_whose_folders_have_our_names(environment: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "plug_in", tmp_path / "plug_in")
    printed = run(environment, tmp_path / "plug_in", "python", "train.py")
    (accuracy,) = re.findall(r"^accuracy ([\d.]+)$", printed, flags=re.MULTILINE)
    (radius,) = re.findall(r"^average certified radius ([\d.]+)$", printed, flags=re.MULTILINE)
    assert float(accuracy) > 0.8
    assert float(radius) > 0
    assert "Certified accuracy on 359 test images" in printed


@pytest.mark.timeout(600)
def test_the_commands_run_on_the_digits(environment: Path, tmp_path: Path) -> None:
    assert "certify" in run(environment, tmp_path, "ellips", "--help")
    run(environment, tmp_path, "ellips", "configs", "configs")
    data, model = (["--config", f"configs/{name}.yaml"] for name in ("data/digits_lipschitz", "model/gaussians"))
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    run(environment, tmp_path, "ellips", "fit", *data, *model, *quiet)
    assert "clean_accuracy" in run(environment, tmp_path, "ellips", "test", *data, *model, *quiet)
    certify = ["--config", "configs/certify/digits_lipschitz.yaml", "--skip=24"]
    assert "deterministic" in run(environment, tmp_path, "ellips", "certify", *data, *certify)
    results = "runs/digits_lipschitz/certify/test"
    checked = run(environment, tmp_path, "ellips", "check", f"{results}/latent-exact.safetensors")
    assert checked.startswith("15 of 15 certificates are proven")
    attack = ["--max=3", "--attack.steps=5", "--attack.restarts=1", "--attack.autoattack_points=0"]
    assert "DOES NOT HOLD" not in run(environment, tmp_path, "ellips", "audit", results, *attack)
    assert (tmp_path / results / "audit.json").is_file()

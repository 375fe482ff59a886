from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ellips.certificates import Certificate, check
from ellips.files.proofs import load_certificates, save_certificates
from ellips.types import LipschitzBound
from tests.ellips.mixtures import random_mixture, random_points


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_what_is_read_is_what_was_written_and_checks(kind: str, tmp_path: Path) -> None:
    ellips = random_mixture(kind, 4, 5)
    z = random_points(ellips, 30)
    certificate = ellips.certify(z)
    path = save_certificates(tmp_path / "run" / "certificates.safetensors", certificate, z, ellips, torch.arange(30))
    assert [file.name for file in path.parent.iterdir()] == ["certificates.safetensors"]
    saved = load_certificates(path)
    assert saved.digest == ellips.digest()
    assert torch.equal(saved.certificate.radius, certificate.radius)
    assert saved.certificate.method == "exact"
    assert saved.index is not None
    assert torch.equal(saved.index, torch.arange(30))
    assert check(saved.ellips, saved.z, saved.certificate).all()


def test_an_input_space_certificate_keeps_its_source(tmp_path: Path) -> None:
    ellips = random_mixture("full", 4, 5)
    z = random_points(ellips, 6)
    bound = LipschitzBound(torch.full((6,), 2.0), torch.full((6,), 0.3), "deterministic", "by hand", {})
    certificate = ellips.certify(z).to_input(bound)
    saved = load_certificates(save_certificates(tmp_path / "c", certificate, z, ellips)).certificate
    assert (saved.space, saved.soundness, saved.source) == ("input", "deterministic", "by hand")
    assert check(ellips, z, saved).all()
    grown = Certificate(**{**saved.__dict__, "radius": saved.radius * 1.01})
    assert not check(ellips, z, grown).any()


def test_what_was_taken_off_the_latent_radius_is_kept_and_checked(tmp_path: Path) -> None:
    ellips = random_mixture("full", 4, 5)
    z = random_points(ellips, 6)
    error = 0.1 * ellips.certify(z).radius
    bound = LipschitzBound(
        torch.full((6,), 2.0), torch.full((6,), 9.0), "probabilistic", "drawn", {"latent_error": error}
    )
    certificate = ellips.certify(z).less(error).to_input(bound)
    saved = load_certificates(save_certificates(tmp_path / "c", certificate, z, ellips)).certificate
    assert saved.latent_error is not None
    assert torch.equal(saved.latent_error, error)
    assert check(ellips, z, saved).all()
    assert not check(ellips, z, replace(saved, diagnostics={"latent_error": error * (1 + 1e-6)})).any()


def test_altered_and_foreign_files_are_refused(tmp_path: Path) -> None:
    ellips = random_mixture("full", 4, 5)
    z = random_points(ellips, 6)
    path = save_certificates(tmp_path / "c", ellips.certify(z), z, ellips)
    with pytest.raises(FileNotFoundError, match="there is none"):
        load_certificates(tmp_path / "other")
    save_file({"z": z}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="format 'ellips-certificates-1' but got None"):
        load_certificates(tmp_path / "foreign")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="whole safetensors file"):
        load_certificates(tmp_path / "cut")
    content = path.read_bytes()
    position = content.rindex(load_file(path)["ellips.means"].numpy().tobytes())
    (tmp_path / "altered").write_bytes(content[:position] + b"\x01" + content[position + 1 :])
    with pytest.raises(ValueError, match="the file was altered"):
        load_certificates(tmp_path / "altered")
    with pytest.raises(ValueError, match="3 certificates"):
        save_certificates(tmp_path / "c", ellips.certify(z[:3]), z, ellips)


def test_a_classifier_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    ellips = random_mixture("full", 3, 2, 0)
    z = random_points(ellips, 2, 0)
    path = save_certificates(tmp_path / "certificates", ellips.certify(z), z, ellips)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), "ellips.fitted": torch.tensor(False)}, path, metadata)
    with pytest.raises(ValueError, match=r"certificates to hold certificates .* fitted"):
        load_certificates(path)


def test_files_made_by_hand_with_other_lengths_are_refused(tmp_path: Path) -> None:
    """Of more certificates than latents only the first would be looked at, and all of these be proven."""
    ellips = random_mixture("full", 4, 5)
    z = random_points(ellips, 6)
    path = save_certificates(tmp_path / "c", ellips.certify(z), z, ellips, torch.arange(6))
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    del about["content"]  # as in files of version 0.1
    metadata = {"format": "ellips-certificates-1", "about": json.dumps(about)}
    for name, value in (("z", z[:3]), ("index", torch.arange(3)), ("index", torch.zeros(6, 2).long()), ("z", z[0])):
        save_file({**load_file(path), name: value.clone()}, tmp_path / "forged", metadata)
        with pytest.raises(ValueError, match="a latent, and an index if any, for each of 6 certificates"):
            load_certificates(tmp_path / "forged")

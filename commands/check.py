"""``check``: check saved certificates, the proof and not the solver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ellips.certificates import Prover, check, checked_scope
from ellips.files import load_certificates
from ellips.progress import followed

from .messages import Parser

_AT_ONCE = 64  # certificates between two looks at the clock


def main(args: Sequence[str] | None = None) -> int:
    """Check a file of certificates; the exit code is 1 if one of them is not proven, or an image comes twice."""
    parser = Parser(prog="ellips check", description="Check saved certificates: the proof, not the solver.")
    parser.add_argument("file", type=Path, help="A file <series>.safetensors that `ellips certify` wrote.")
    config = parser.parse_args(None if args is None else list(args))
    saved = load_certificates(config.file)
    if len(saved.certificate) == 0:
        print(f"{config.file} holds no certificates: nothing is proven.")
        return 1
    prover, rows = Prover(saved.ellips), torch.arange(len(saved.z)).split(_AT_ONCE)
    parts = followed(rows, "Proving", len(saved.z), len, unit="certificates")
    passed = torch.cat([check(saved.ellips, saved.z[part], saved.certificate[part], prover=prover) for part in parts])
    what = f"{saved.certificate.method}, {saved.certificate.space} space, {saved.certificate.soundness}"
    proven = "proven" if saved.certificate.space == "latent" else "proven as far as they can be here"
    print(f"{int(passed.sum())} of {len(passed)} certificates are {proven} ({what}; classifier {saved.digest}).")
    print(f"What was proven, with every rounding bounded: {checked_scope(saved.certificate)}")
    again = 0 if saved.index is None else len(saved.index) - len(saved.index.unique())
    if again:
        print(f"{again} certificates are of images that the file has already: no share of images follows from it.")
    failed = (~passed).nonzero().flatten()
    if len(failed):
        where = failed if saved.index is None else saved.index[failed]
        print(f"These are not: {where[:20].tolist()}{' and more' if len(where) > 20 else ''}")
    return int(len(failed) + again > 0)

"""Certify images, check, attack and compare: ``python certify.py --config configs/digits.yaml``.

The same as ``ellips certify``; ``python certify.py check``, ``audit`` and ``compare`` are ``ellips check`` and so on.
"""

import sys
from collections.abc import Sequence

from ellips.commands import main as ellips
from ellips.commands.messages import in_one_message


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; the first argument names it, none of them means to certify."""
    given = list(sys.argv[1:] if args is None else args)
    named = bool(given) and given[0] in ("check", "audit", "compare")
    return ellips(given if named else ["certify", *given])


if __name__ == "__main__":
    sys.exit(in_one_message(main, sys.argv[1:]))

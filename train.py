"""Train, validate, test: ``python train.py fit --config configs/digits.yaml``; the same as ``ellips fit``."""

import sys

from ellips.commands.ending import ended
from ellips.commands.training import main

if __name__ == "__main__":
    sys.exit(ended(main))

"""Train, validate, test: ``python train.py fit --config configs/digits.yaml``; the same as ``ellips fit``."""

import sys

from ellips.commands import console

if __name__ == "__main__":
    sys.exit(console())

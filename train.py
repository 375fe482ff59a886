"""Train, validate, test: ``python train.py fit --config configs/digits.yaml``; the same as ``ellips fit``."""

from ellips.commands.training import train
from ellips.distributed import close_process_group

if __name__ == "__main__":
    train()
    close_process_group()

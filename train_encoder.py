"""Train an encoder or a denoiser: ``python train_encoder.py fit --config ...``, or ``ellips train-encoder``."""

import sys

from ellips.commands.ending import ended
from ellips.commands.train_encoder import main

if __name__ == "__main__":
    sys.exit(ended(main))

"""Train an encoder or a denoiser: ``python train_encoder.py fit --config ...``, or ``ellips train-encoder``."""

import sys

from ellips.commands import main
from ellips.commands.messages import in_one_message

if __name__ == "__main__":
    sys.exit(in_one_message(lambda given: main(["train-encoder", *given]), sys.argv[1:]))

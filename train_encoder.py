"""Train an encoder or a denoiser: ``python train_encoder.py fit --config ...``, or ``ellips train-encoder``."""

from ellips.commands.train_encoder import train_encoder
from ellips.distributed import close_process_group

if __name__ == "__main__":
    train_encoder()
    close_process_group()

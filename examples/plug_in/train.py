"""A Lightning project of its own that uses ellips: ``pip install ellips``, then ``python train.py [DEVICES]``.

Its folders have the names that this project's have in a clone: ``from callbacks import ...`` is its own, and the parts
of ellips are ``ellips.callbacks`` and so on.
"""

import sys

import lightning as L

from callbacks import Announce
from datamodules import MyDigits
from ellips.callbacks import AtomicCheckpointIO, CertificationCallback
from lightning_modules import MyClassifier

if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=5,
        accelerator="cpu",
        devices=int(sys.argv[1]) if len(sys.argv) > 1 else 1,
        callbacks=[CertificationCallback(), Announce()],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    model, data = MyClassifier(MyDigits.num_classes), MyDigits()
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)

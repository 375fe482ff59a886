"""A callback of this project, beside those of ellips."""

import lightning as L


class Announce(L.Callback):
    """Says what came out."""

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        print(f"accuracy {values['test/clean_accuracy']:.3f}", flush=True)
        print(f"average certified radius {values['test/average_certified_radius/latent-exact']:.3f}", flush=True)

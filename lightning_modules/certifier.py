"""Certifier: certifies images under Lightning's predict loop, so that several devices and nodes share the work."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import lightning as L
import torch
from torch import Tensor

from ellips.certificates import METHODS, Certificate, Method
from ellips.files.records import ImageRecord, records_from_certificate
from ellips.lipschitz import ConstantSource
from ellips.pipeline import ImageClassifier
from ellips.types import ImageBatch

_T = TypeVar("_T")


class CertifiedImage(NamedTuple):
    """All that is known of one image.

    Attributes:
        records: One record per series.
        latent: Shape ``(d,)``, the latent that was certified.
    """

    records: list[ImageRecord]
    latent: Tensor


class Certifier(L.LightningModule):
    """Certifies batches of images, in latent space by every method asked for and in input space by every source.

    Args:
        classifier: The whole map from image to scores.
        methods: Latent certificates; each is a series of its own.
        sources: Where Lipschitz constants come from; each is a series of its own, in input space.
        input_method: The latent certificate that the sources carry to the input.
        seed: Recorded with every row.

    Raises:
        ValueError: If a method is unknown or there is nothing to do.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        methods: Sequence[Method] = ("theorem", "pairwise", "exact"),
        sources: Sequence[ConstantSource] = (),
        input_method: Method = "exact",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for method in (*methods, input_method):
            if method not in METHODS:
                raise ValueError(f"Expected `methods` out of {METHODS} but got {method!r}.")
        if not methods and not sources:
            raise ValueError("Expected at least one method or source but got none.")
        self.classifier = classifier
        self.latent_series = {f"latent-{method}": method for method in methods}
        self.input_series = dict(zip(source_names(sources), sources, strict=True))
        self.input_method: Method = input_method
        self.seed = seed

    @property
    def series(self) -> list[str]:
        """Names of the series, in the order of every image's records."""
        return [*self.latent_series, *self.input_series]

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> list[CertifiedImage]:
        """Certify a batch.

        Args:
            batch: Images with values in [0, 1], labels and positions.
            batch_idx: Not used.

        Returns:
            One entry per image.
        """
        if len(batch.index) == 0:  # images that cannot be read are left out by the datamodule, and reported as missing
            return []
        latent, seconds = _timed(lambda: self.classifier.latents(batch.image).detach().cpu())
        ellips, size = self.classifier.head.ellips, len(batch.index)
        columns = []
        for name, method in self.latent_series.items():
            latents = latent.to(self.device)
            certificate, extra = _timed(lambda m=method, z=latents: ellips.certify(z, method=m).cpu())
            columns.append(self._records(certificate, batch, name, (seconds + extra) / size))
        for name, source in self.input_series.items():
            certificate, extra = _timed(
                lambda s=source: self.classifier.certify(batch.image, s, self.input_method).cpu()
            )
            columns.append(self._records(certificate, batch, name, extra / size))
        return [CertifiedImage(list(rows), latent[i]) for i, rows in enumerate(zip(*columns, strict=True))]

    def _records(self, certificate: Certificate, batch: ImageBatch, series: str, seconds: float) -> list[ImageRecord]:
        return records_from_certificate(
            certificate, batch.index.cpu(), batch.label.cpu(), series=series, seconds=seconds, seed=self.seed
        )


def source_names(sources: Sequence[ConstantSource]) -> list[str]:
    """Name the series of each source after its class: ``input-jacobian-norm``, numbered where a class comes again."""
    classes = [re.sub(r"(?<!^)(?=[A-Z])", "-", type(source).__name__).lower() for source in sources]
    counts = [classes[: i + 1].count(name) for i, name in enumerate(classes)]
    return [f"input-{name}" + (f"-{count}" if count > 1 else "") for name, count in zip(classes, counts, strict=True)]


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """Return a result and the seconds it took; the work must end with a copy to the processor's memory."""
    start = time.perf_counter()
    with torch.no_grad():
        result = work()
    return result, time.perf_counter() - start

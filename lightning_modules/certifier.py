"""Certifier: certifies images under Lightning's predict loop, so that several devices and nodes share the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import lightning as L
import torch
from torch import Tensor

from ellips.certificates import METHODS, Certificate, Method, Prover, confirm
from ellips.files import ImageRecord, records_from_certificate
from ellips.input_certifiers import Chain, InputCertifier, as_certifier, series_of
from ellips.lipschitz import ConstantSource
from ellips.pipeline import ImageClassifier
from ellips.precision import full_precision
from ellips.types import ImageBatch, Series
from ellips.validation import one_of

_T = TypeVar("_T")


class CertifiedImage(NamedTuple):
    """All that is known of one image.

    Attributes:
        records: One record per series.
        latent: Shape ``(d,)``, the latent that was certified.
        kept: By series, another latent ``(d,)`` that the series' latent radius was proven of, such as a sampled mean.
    """

    records: list[ImageRecord]
    latent: Tensor
    kept: Mapping[Series, Tensor] = MappingProxyType({})


class Certifier(L.LightningModule):
    """Certifies batches of images, in latent space by every method asked for and in input space by every certifier.

    Each batch is encoded once, and each latent certificate computed once, whatever starts from it; the verified kernel
    confirms it before it is handed on, or lowers it until it can.

    Args:
        classifier: The whole map from image to scores.
        methods: Latent certificates; each is a series of its own.
        certifiers: Ways to a radius on the image; each is a series of its own, in input space.
        input_method: The latent certificate that the certifiers start from.
        seed: Recorded with every row.

    Raises:
        ValueError: If a method is unknown or there is nothing to do.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        methods: Sequence[Method] = ("theorem", "pairwise", "exact"),
        certifiers: Sequence[InputCertifier | ConstantSource] = (),
        input_method: Method = "exact",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for method in methods:
            one_of(METHODS, methods=method)
        one_of(METHODS, input_method=input_method)
        if not methods and not certifiers:
            raise ValueError("Expected at least one method or certifier but got none.")
        self.classifier = classifier
        self.methods = tuple(dict.fromkeys(methods))
        self.certifiers = [as_certifier(given) for given in certifiers]
        self.input_method: Method = input_method
        self.seed = seed
        self._prover: Prover | None = None

    @property
    def series(self) -> list[Series]:
        """The series, in the order of every image's records."""
        latent = [Series("latent", method) for method in self.methods]
        return [*latent, *series_of(self.certifiers, self.input_method)]

    def validate_run(self, count: int) -> None:
        """Refuse a run over so many images if a certifier's claim does not cover them; see :class:`InputCertifier`."""
        for certifier in self.certifiers:
            certifier.validate_run(count)

    @full_precision()
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
        chain, size = self.classifier.chain._replace(prover=self._prover), len(batch.index)
        latents, seconds = _timed(partial(_latents, chain, batch.image))
        needed = dict.fromkeys((*self.methods, *([self.input_method] if self.certifiers else [])))
        found = {method: _timed(partial(self._certify, chain, latents, method)) for method in needed}
        columns = [(certificate, seconds + extra) for certificate, extra in (found[m] for m in self.methods)]
        kept: dict[Series, Tensor] = {}
        if self.certifiers:
            start, before = found[self.input_method]
            for series, certifier in zip(self.series[len(self.methods) :], self.certifiers, strict=True):
                work = partial(certifier.certify_with_latents, chain, batch.image.clone(), latents, start)
                (certificate, about), extra = _timed(work)
                columns.append((certificate, seconds + before + extra))
                if about is not None:
                    kept[series] = about.cpu()
        records = [
            self._records(certificate, batch, series, spent / size)
            for series, (certificate, spent) in zip(self.series, columns, strict=True)
        ]
        latents = latents.detach().cpu()
        return [
            CertifiedImage(list(rows), latents[i], {series: about[i] for series, about in kept.items()})
            for i, rows in enumerate(zip(*records, strict=True))
        ]

    def on_predict_start(self) -> None:
        """Take up the mixture that claims are to be proven of."""
        self._prover = Prover(self.classifier.head.ellips)

    def _certify(self, chain: Chain, latents: Tensor, method: Method) -> Certificate:
        """Certify latents; what the verified kernel cannot confirm is lowered until it can."""
        certificate = chain.ellips.certify(latents, method=method)
        return confirm(chain.ellips, latents, certificate, self._prover)

    def _records(
        self, certificate: Certificate, batch: ImageBatch, series: Series, seconds: float
    ) -> list[ImageRecord]:
        return records_from_certificate(
            certificate, batch.index.cpu(), batch.label.cpu(), series=series, seconds=seconds, seed=self.seed
        )


def _latents(chain: Chain, images: Tensor) -> Tensor:
    """Return latents that stay as they are: an encoder may write to its input, and return the same memory again."""
    return chain.latents(images.clone()).clone()


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """Return a result and the seconds it took, work queued on a GPU included."""
    start = time.perf_counter()
    with torch.no_grad():
        result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start

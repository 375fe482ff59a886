"""Optimiser and learning-rate schedule of the projector, as plain settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ellips.validation import at_least, one_of


@dataclass(frozen=True)
class Optimization:
    """How the head is trained. The defaults are those published for CPP (Chu et al. 2023) on CIFAR-10.

    Attributes:
        optimizer: ``"sgd"`` or ``"adamw"``.
        learning_rate: Peak learning rate of the projector.
        momentum: Of SGD.
        weight_decay: Of the feature head (the last linear map).
        pre_feature_weight_decay: Of the layers before it.
        mixture_learning_rate: Learning rate of the mixture where it is trained, None: ``learning_rate``.
        mixture_weight_decay: Weight decay of the mixture where it is trained.
        schedule: ``"constant"``, or ``"cosine"`` down to zero over the whole fit, stepped every optimiser step.

    Raises:
        ValueError: If a number is negative or a name unknown.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    pre_feature_weight_decay: float = 1e-4
    mixture_learning_rate: float | None = None
    mixture_weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        at_least(0, **{name: value for name, value in vars(self).items() if not isinstance(value, str)})
        one_of(("sgd", "adamw"), optimizer=self.optimizer)
        one_of(("constant", "cosine"), schedule=self.schedule)

    def build_optimizer(self, head: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser over the head's parameters, in up to three groups with their own weight decay.

        Args:
            head: An EllipsHead: ``pre_feature``, ``feature_head`` and ``mixture`` (where trainable) are the groups.

        Raises:
            ValueError: If the head has no parameters.
        """
        groups = self._groups(head)
        if not groups:
            raise ValueError("Expected a head with parameters to train but it has none; give it a projector.")
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)
        return torch.optim.AdamW(groups, lr=self.learning_rate)

    def _groups(self, head: nn.Module) -> list[dict[str, Any]]:
        parts: dict[str, list[nn.Parameter]] = {"pre_feature": [], "feature_head": [], "mixture": []}
        for name, parameter in head.named_parameters():
            part = "mixture" if name.startswith("ellips.") else "feature_head"
            parts["pre_feature" if ".pre_feature." in f".{name}" else part].append(parameter)
        settings = {
            "pre_feature": (self.learning_rate, self.pre_feature_weight_decay),
            "feature_head": (self.learning_rate, self.weight_decay),
            "mixture": (
                self.learning_rate if self.mixture_learning_rate is None else self.mixture_learning_rate,
                self.mixture_weight_decay,
            ),
        }
        return [
            {"name": name, "params": parameters, "lr": settings[name][0], "weight_decay": settings[name][1]}
            for name, parameters in parts.items()
            if parameters
        ]

    def build_schedule(
        self, optimizer: torch.optim.Optimizer, total_steps: Callable[[], float]
    ) -> torch.optim.lr_scheduler.LambdaLR | None:
        """Return the learning-rate scheduler, None for a constant rate.

        Args:
            optimizer: From :meth:`build_optimizer`.
            total_steps: Returns the optimiser steps of the whole fit. It is asked after the first step, not here: to
                know, a trainer opens its training data, and Lightning would then not restore their position.

        Raises:
            ValueError: From the first step of the schedule, if a cosine was asked for a fit without an end.
        """
        if self.schedule == "constant":
            return None

        def factor(step: int) -> float:
            if step == 0:
                return 1.0
            total = total_steps()
            if not 0 < total < math.inf:
                raise ValueError(
                    f"Expected a fit of known length for schedule='cosine' but got {total} steps; set max_epochs."
                )
            return 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

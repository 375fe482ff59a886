"""What a run will cost, before it runs: pure functions from settings to bytes and to images through the encoder."""

from ellips.planning.attacks import audit_work
from ellips.planning.certifiers import Images, certifier_cost, expected_draws, expected_selection
from ellips.planning.encoder import outline, parameter_count
from ellips.planning.fit import FitPlan, searched_by
from ellips.planning.head import fit_flops, search_flops, training_flops
from ellips.planning.show import show_plan, stage_entry
from ellips.planning.sizes import (
    FLOAT32,
    PEAK,
    cache_bytes,
    checkpoint_bytes,
    covariance_bytes,
    covariance_numbers,
    head_sizes,
    mixture_bytes,
    projector_numbers,
)
from ellips.planning.work import PRODUCT, Cost, Work

__all__ = [
    "FLOAT32",
    "PEAK",
    "PRODUCT",
    "Cost",
    "FitPlan",
    "Images",
    "Work",
    "audit_work",
    "cache_bytes",
    "certifier_cost",
    "checkpoint_bytes",
    "covariance_bytes",
    "covariance_numbers",
    "expected_draws",
    "expected_selection",
    "fit_flops",
    "head_sizes",
    "mixture_bytes",
    "outline",
    "parameter_count",
    "projector_numbers",
    "search_flops",
    "searched_by",
    "show_plan",
    "stage_entry",
    "training_flops",
]

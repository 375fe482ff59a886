"""Attacks on claims: predictions inside certified radii, and slopes inside the balls that Lipschitz constants cover."""

from ellips.audit.attacks import AttackSettings, Course, attack_balls, number_of_attacks
from ellips.audit.claims import (
    AttackBatch,
    AuditedImage,
    attack_batches,
    audit_batch,
    audit_series,
    latent_target,
    verdict,
)
from ellips.audit.show import audit_table, write_audit
from ellips.audit.slopes import steepest_slopes

__all__ = [
    "AttackBatch",
    "AttackSettings",
    "AuditedImage",
    "Course",
    "attack_balls",
    "attack_batches",
    "audit_batch",
    "audit_series",
    "audit_table",
    "latent_target",
    "number_of_attacks",
    "steepest_slopes",
    "verdict",
    "write_audit",
]

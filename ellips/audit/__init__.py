"""Attacks on claims: predictions inside certified radii, and slopes inside the balls that Lipschitz constants cover."""

from ellips.audit.attacks import AttackSettings, attack_balls
from ellips.audit.claims import (
    AttackBatch,
    AuditedImage,
    attack_batches,
    audit_batch,
    audit_passes,
    audit_series,
    latent_target,
    verdict,
)
from ellips.audit.course import Course
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
    "audit_passes",
    "audit_series",
    "audit_table",
    "latent_target",
    "steepest_slopes",
    "verdict",
    "write_audit",
]

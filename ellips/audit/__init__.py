"""Attacks on claims: predictions inside certified radii, and slopes inside the balls that Lipschitz constants cover."""

from ellips.audit.attacks import AttackSettings, attack_balls
from ellips.audit.claims import AuditedImage, audit_series, verdict
from ellips.audit.show import audit_table, write_audit
from ellips.audit.slopes import steepest_slopes
from ellips.audit.targets import Target, input_target, latent_target

__all__ = [
    "AttackSettings",
    "AuditedImage",
    "Target",
    "attack_balls",
    "audit_series",
    "audit_table",
    "input_target",
    "latent_target",
    "steepest_slopes",
    "verdict",
    "write_audit",
]

"""Attacks on claims: predictions inside certified radii, and slopes inside the balls that Lipschitz constants cover."""

from ellips.audit.attacks import AttackSettings, attack_balls
from ellips.audit.claims import AuditedImage, audit_series, latent_target, verdict
from ellips.audit.show import audit_table, write_audit
from ellips.audit.slopes import steepest_slopes

__all__ = [
    "AttackSettings",
    "AuditedImage",
    "attack_balls",
    "audit_series",
    "audit_table",
    "latent_target",
    "steepest_slopes",
    "verdict",
    "write_audit",
]

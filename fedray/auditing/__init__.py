"""Empirical audits of differential privacy: canaries, scores, and a lower bound on epsilon from one run.

Stands beside ``fedray.running``, above ``fedray.build``. Must not import ray.
"""

from fedray.auditing.example_level import audit_examples
from fedray.auditing.one_run import epsilon_lower_bound
from fedray.auditing.owner_level import audit_models, audit_owners
from fedray.auditing.result import AuditResult

__all__ = ["AuditResult", "audit_examples", "audit_models", "audit_owners", "epsilon_lower_bound"]

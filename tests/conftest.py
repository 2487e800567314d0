"""Fixtures of the whole test suite, one topic per ``fix_*.py`` file.

Hypothesis plays the same examples in every run, and no example has a time limit: a gate says the same of the same code,
however busy the machine is. Other examples are played with ``--hypothesis-profile=explore``.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "fix_ports", "fix_telling", "fix_cli", "fix_postgres", "fix_library", "fix_proxy", "fix_stock", "fix_valkey",
    "fix_world",
]  # fmt: skip

_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.register_profile("explore", _PATIENT)
settings.register_profile("gate", _PATIENT, derandomize=True)
settings.load_profile("gate")

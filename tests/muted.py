"""A test in two forms: ``kept``, where a rule holds, and ``muted``, where it is switched off and the harm must show."""

from __future__ import annotations

import pytest

__all__ = ["kept_and_muted"]

kept_and_muted = pytest.mark.parametrize(
    "muted", [pytest.param(False, id="kept"), pytest.param(True, id="muted", marks=pytest.mark.sabotage)]
)

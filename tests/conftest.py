"""Fixtures of the whole test suite, one topic per ``fix_*.py`` file."""

from __future__ import annotations

pytest_plugins = ["fix_cli", "fix_postgres", "fix_library", "fix_proxy", "fix_stock", "fix_valkey", "fix_world"]

"""The context of the upstream leg: made once, and again when the root certificates are others."""

from __future__ import annotations

import ssl
from pathlib import Path
from unittest.mock import patch

import pytest

from distribcache.errors import ConfigError
from distribcache.proxy.upstream import Target, read_target


def target(root: Path, mode: str = "verify-full") -> Target:
    return read_target(f"postgresql://localhost/x?sslmode={mode}&sslrootcert={root}", 1.0)


def test_root_certificates_are_read_again_when_their_file_is_another_one(tmp_path: Path) -> None:
    root = tmp_path / "root.crt"
    root.write_text("first")
    read: list[str] = []
    with patch.object(ssl.SSLContext, "load_verify_locations", lambda _, path: read.append(Path(path).read_text())):
        one = target(root)
        first = one.tls()
        assert first is not None and first is one.tls() and first is target(root).tls()
        assert read == ["first"]
        root.write_text("second")
        assert one.tls() is not first
        assert read == ["first", "second"]
        weaker = target(root, "verify-ca").tls()
        assert weaker is not None and weaker is not one.tls() and first.check_hostname and not weaker.check_hostname
        root.unlink()
        root.mkdir()
        with pytest.raises(ConfigError):
            one.tls()
        root.rmdir()
        with pytest.raises(ConfigError):
            one.tls()


@pytest.mark.parametrize("mode", ["prefer", "require"])
def test_a_server_that_is_not_verified_costs_no_context_of_its_own(mode: str) -> None:
    one = read_target(f"postgresql://localhost/x?sslmode={mode}", 1.0)
    context = one.tls()
    assert context is not None and context is one.tls()
    assert context.verify_mode is ssl.CERT_NONE
    assert read_target("postgresql://localhost/x?sslmode=disable", 1.0).tls() is None

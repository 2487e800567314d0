"""Settings: sources and their order, units, what is refused and how it is said, and that passwords stay inside."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distribcache.config import load, mask
from distribcache.config.units import duration_text, parse_address, parse_duration, parse_size, size_text
from distribcache.errors import ConfigError
from distribcache.query import Consistency, WorkloadType


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    import os

    for name in list(os.environ):
        if name.startswith("DISTRIBCACHE_"):
            monkeypatch.delenv(name)


def test_defaults_are_those_of_the_design() -> None:
    settings = load()
    assert settings.listen.endpoint == ("127.0.0.1", 6432)
    assert settings.admin.endpoint == ("127.0.0.1", 6433)
    assert settings.l1.size == 256 << 20
    assert settings.l1.max_entry == 1 << 20
    assert settings.l1.policy == "adaptive"
    assert settings.freshness.consistency is Consistency.SESSION
    assert settings.freshness.max_staleness == 1.0
    assert settings.freshness.schema_poll_s == 1.0
    assert settings.freshness.hit_wait == 0.005
    assert settings.freshness.invalidation == "wal"
    assert not settings.auth.allow_trust
    assert [settings.ttl.of(w) for w in WorkloadType] == [60, 1800, 300, 600, 900, 300]
    assert set(settings.sources.values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[l1]\nsize = "1MB"\nmax_entry = "1kB"\npolicy = "lru"\n')
    monkeypatch.setenv("DISTRIBCACHE_L1_SIZE", "2MB")
    monkeypatch.setenv("DISTRIBCACHE_L1_MAX_ENTRY", "2kB")
    settings = load(file, {"l1.size": "3MB", "l1.policy": None})
    assert (settings.l1.size, settings.l1.max_entry, settings.l1.policy) == (3 << 20, 2 << 10, "lru")
    assert settings.sources["l1.size"] == "flag"
    assert settings.sources["l1.max_entry"] == "environment DISTRIBCACHE_L1_MAX_ENTRY"
    assert settings.sources["l1.policy"] == f"file {file}"
    assert settings.sources["ttl.oltp"] == "default"


def test_file_of_the_current_directory_is_read_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "distribcache.toml").write_text("[cache]\nenabled = false\n")
    assert not load().cache.enabled


def test_key_with_an_underscore_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBCACHE_FRESHNESS_MAX_STALENESS", "250ms")
    assert load().freshness.max_staleness == 0.25
    assert load().freshness.schema_poll_s == 0.25


@pytest.mark.parametrize(
    ("name", "value", "message", "remedy"),
    [
        ("l1.size", "5 parsecs", "not a size", "64MB"),
        ("l1.size", "10", "not a size", "64MB"),
        ("l1.size", "-1MB", "not a size", "64MB"),
        ("l1.size", True, "not a size", "64MB"),
        ("l1.size", 1e30, "not a possible size", "64MB"),
        ("l1.max_entry", "1GB", "larger than size 256MB", "lower max_entry"),
        ("l1.policy", "mru", "'mru'", "'adaptive', 'lru', 'lfu' or 'fifo'"),
        ("ttl.oltp", "5", "not a duration", "250ms"),
        ("freshness.max_staleness", "0s", "too small", "10ms"),
        ("freshness.schema_poll", "2s", "out of range", "max_staleness (1s)"),
        ("freshness.consistency", "strictest", "'strictest'", "'eventual', 'session' or 'strict'"),
        ("listen.address", "::1:5", "brackets", "[::1]:6432"),
        ("listen.address", "127.0.0.1", "not an address", "127.0.0.1:6432"),
        ("listen.address", "localhost:99999", "not an address", "127.0.0.1:6432"),
        ("listen.max_clients", "0", "'0'", "greater than or equal to 1"),
        ("listen.tls_cert", "cert.pem", "tls_key is missing", "both or neither"),
        ("upstream.url", "localhost:5432", "not a PostgreSQL URL", "postgresql://"),
        ("cache.enabled", "perhaps", "neither yes nor no", "true or false"),
        ("l1.sise", "1MB", "no key l1.sise", "did you mean size?"),
        ("cash.size", "1MB", "no section cash", "did you mean cache?"),
    ],
)
def test_wrong_value_is_named_with_its_remedy(name: str, value: object, message: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {name: value})
    error = caught.value
    assert message in error.message
    assert remedy in error.hint
    assert name.partition(".")[0] in error.message
    assert error.where == "flag"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DISTRIBCACHE_FRESHNES_MAX_STALENESS", "1s", "no section freshnes"),
        ("DISTRIBCACHE_FRESHNESS_MAXSTALENESS", "1s", "no key freshness.maxstaleness"),
        ("DISTRIBCACHE_L1", "1MB", "l1 is a section"),
        ("DISTRIBCACHE_L1_SIZE", "huge", "'huge': not a size"),
    ],
)
def test_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load()
    assert message in caught.value.message
    assert caught.value.where == f"environment {variable}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[l1]\nsize = 64MB\n", "not TOML"),
        ("[l4]\nsize = 1\n", "no section l4"),
        ("l1 = 5\n", "l1 is a section"),
        ("[l1]\nsice = 1\n", "no key l1.sice"),
        ("[l1]\nsize = [1]\n", "not a size"),
    ],
)
def test_wrong_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert message in caught.value.message
    assert caught.value.where == f"file {file}"
    assert caught.value.hint


def test_missing_file_is_an_error_only_when_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the file"):
        load(tmp_path / "nowhere.toml")


def test_serving_needs_an_upstream() -> None:
    with pytest.raises(ConfigError) as caught:
        load().upstream_url()
    assert "--upstream" in caught.value.hint
    assert load(None, {"upstream.url": "postgres://h/d"}).upstream_url() == "postgres://h/d"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bob:s3cr3t@h:5/d",
        "postgresql://bob@h/d?password=s3cr3t",
        "postgresql://bob:s3cr3t@a,b:6/d",
        "postgresql://bob:x@s3cr3t@h/d",
    ],
)
def test_password_never_shows(url: str) -> None:
    settings = load(None, {"upstream.url": url})
    assert settings.upstream_url() == url
    everything = repr(settings) + str(settings) + repr(settings.upstream) + str(settings.show())
    assert "bob" in everything
    assert "s3cr3t" not in everything
    with pytest.raises(ConfigError) as caught:
        load(None, {"upstream.url": url + " x"})
    assert "s3cr3t" not in str(caught.value)


def test_mask_handles_keyword_strings() -> None:
    assert mask("host=h password='it''s \\' s3cr3t' user=u").endswith("user=u")
    assert "s3cr3t" not in mask("host=h password = s3cr3t user=u")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().l1.size = 5  # type: ignore[misc]


def test_show_can_be_written_back_into_a_file(tmp_path: Path) -> None:
    """What SHOW tells is valid in the file and means the same."""
    settings = load(None, {"upstream.url": "postgresql://h/d", "freshness.schema_poll": "20ms"})
    sections: dict[str, list[str]] = {}
    for name, value, _ in settings.show():
        section, _, key = name.partition(".")
        if value:
            quoted = value if value in ("true", "false") or value.isdigit() else f'"{value}"'
            sections.setdefault(section, []).append(f"{key} = {quoted}")
    text = "\n".join(f"[{section}]\n" + "\n".join(lines) for section, lines in sections.items())
    tomllib.loads(text)
    file = tmp_path / "all.toml"
    file.write_text(text)
    assert load(file).model_dump() == settings.model_dump()


@given(st.integers(0, 1 << 60))
def test_size_text_is_exact(size: int) -> None:
    assert parse_size(size_text(size)) == size or size > 1 << 53


@given(st.integers(0, 10**12))
def test_duration_text_is_exact_to_the_microsecond(micros: int) -> None:
    assert round(parse_duration(duration_text(micros / 1e6)) * 1e6) == micros


@pytest.mark.parametrize(
    ("text", "address"),
    [("[::1]:0", ("::1", 0)), ("0.0.0.0:6432", ("0.0.0.0", 6432)), (" db.example.com:1 ", ("db.example.com", 1))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


def test_a_class_may_only_be_bound_tighter_than_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(None, {"staleness.olap": "250ms", "staleness.default": "1s"})
    assert settings.staleness.bounds == {"olap": 0.25, "mixed": 1.0}
    with pytest.raises(ConfigError, match=r"staleness\.olap: 30s is longer than freshness.* \(1s\)") as raised:
        load(None, {"staleness.olap": "30s"})
    assert raised.value.where == "flag" and "raise that one" in raised.value.hint
    assert load(None, {"staleness.olap": "30s", "freshness.max_staleness": "30s"}).staleness.olap == 30
    with pytest.raises(ConfigError, match=r"staleness\.oltp: .*too small"):
        load(None, {"staleness.oltp": "1ms"})


def test_the_share_of_audits_is_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {"audit.sample": "0.5"}).audit.sample == 0.5
    shown = {name: value for name, value, _ in load().show()}
    assert shown["audit.sample"] == "0.0001" and shown["staleness.olap"] == ""
    for wrong in ("2", "-1", "often"):
        with pytest.raises(ConfigError, match=r"audit\.sample"):
            load(None, {"audit.sample": wrong})


def test_a_slot_that_outlives_us_needs_a_place_for_the_rest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"freshness\.slot: persistent needs a directory") as raised:
        load(None, {"freshness.slot": "persistent"})
    assert "set l2.path" in raised.value.hint
    settings = load(None, {"freshness.slot": "persistent", "l2.path": str(tmp_path)})
    assert settings.freshness.slot == "persistent"
    with pytest.raises(ConfigError, match=r"freshness\.slot"):
        load(None, {"freshness.slot": "eternal"})

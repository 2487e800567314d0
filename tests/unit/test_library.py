"""Small parts of the library: rows, fingerprints, settings, single flight, sums, steps."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wait import until

import distribcache
from distribcache import CacheEntry, DistribCache, DistribCacheConfig, QueryFingerprint
from distribcache.entry import make_entry
from distribcache.errors import (
    CacheConnectionError,
    CacheError,
    ClientError,
    ConfigError,
    ConfigurationError,
    InvalidationError,
    UpstreamError,
)
from distribcache.library import heat
from distribcache.library.dependence import qualified
from distribcache.library.drivers.with_psycopg import translate
from distribcache.library.flights import Flights
from distribcache.library.forgotten import Marks
from distribcache.library.heat import Heat
from distribcache.library.plan import Wish
from distribcache.library.rows import row_class
from distribcache.library.steps import Steps, Wait, block, go


def test_rows_are_tuples_with_names() -> None:
    row = row_class(("id", "name", "count", "id"))((1, "tea", 3, 4))
    assert row == (1, "tea", 3, 4) and row[1] == row["name"] == row.name == "tea"
    assert row["id"] == 1 and row["count"] == 3 and row[1:3] == ("tea", 3)
    assert row.get("name") == "tea" and row.get("no", 7) == 7 and row.keys() == ("id", "name", "count", "id")
    assert type(row) is row_class(("id", "name", "count", "id"))
    with pytest.raises(KeyError, match="no column 'x'; there are"):
        row["x"]
    with pytest.raises(AttributeError, match="no column"):
        row.x  # noqa: B018
    with pytest.raises(AttributeError):
        row.name = 1
    with pytest.raises(TypeError):
        row[0] = 1  # type: ignore[index]


def test_fingerprints_share_templates_and_never_keys() -> None:
    texts = [
        "SELECT * FROM a WHERE x = 1", "SELECT * FROM a WHERE x = 2", "SELECT * FROM b WHERE x = 1",
        "SELECT * FROM a WHERE x = '1'", "SELECT x, y FROM a", "SELECT y, x FROM a", "SELECT 1::int4", "SELECT 1::int8",
        "SELECT * FROM a LIMIT 1", "SELECT * FROM t_2024", "SELECT * FROM t_2025", "not sql", "",
    ]  # fmt: skip
    found = [QueryFingerprint.from_query(text) for text in texts]
    assert len({each.key for each in found}) == len(set(found)) == len(texts)
    assert found[0].template == found[1].template and found[0].tables == ("a",)
    params: list[tuple[Any, ...]] = [(1,), (True,), (1.0,), ("1",), (1, 2), ((1, 2),), (None,), ()]
    given = [found[0].with_params(*each) for each in params]
    given += [found[0].with_params(a=1), found[0].with_params(b=1)]
    assert len({each.key for each in given}) == len(given)
    assert found[0].with_params(1) == QueryFingerprint.from_query(texts[0]).with_params(1)
    with pytest.raises(TypeError):
        found[0].with_params(object())
    assert QueryFingerprint("a", ("b",)).key != QueryFingerprint("ab").key != QueryFingerprint("a", (), b"b").key


@given(st.text(), st.text())
def test_different_texts_have_different_keys(one: str, other: str) -> None:
    found = [QueryFingerprint.from_query(text.encode("utf-8", "replace").decode()) for text in (one, other)]
    assert (found[0].key == found[1].key) == (
        one.encode("utf-8", "replace") == other.encode("utf-8", "replace")
    )


def test_settings_as_keywords(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "distribcache.toml"
    file.write_text('[l1]\nsize = "64MB"\n[ttl]\nolap = "7min"\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    assert DistribCacheConfig().settings.l1.size == 256 << 20  # no file is read unless it is named
    config = DistribCacheConfig.from_toml(file, l1_max_entry="2MB", ttl={"oltp": 5})
    settings = config.settings
    assert (settings.l1.size, settings.l1.max_entry) == (64 << 20, 2 << 20)
    assert (settings.ttl.olap, settings.ttl.oltp) == (420, 5)
    assert "l1.max_entry=2MB" in repr(config)
    monkeypatch.setenv("DISTRIBCACHE_TTL_OLAP", "8min")
    assert DistribCacheConfig.from_toml(file).settings.ttl.olap == 480
    assert "secret" not in repr(DistribCacheConfig(upstream_url="postgresql://a:secret@b/c"))


@pytest.mark.parametrize("given", [{"l1_size": "huge"}, {"l1_sise": "1MB"}, {"nothing_at_all": 1}, {"l1": 5}])
def test_a_wrong_setting_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        DistribCacheConfig(**given)
    assert raised.value.hint and "keyword argument" in raised.value.where
    assert "no key l1.\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("consistency", "strong", "it should be 'eventual', 'session' or 'strict'"),
        ("max_staleness", "5 parsecs", "write a number and a unit"),
        ("ttl", -1, "write a number and a unit"),
        ("workload", "fast", "'olap'"),
    ],
)
def test_a_wrong_wish_is_named(name: str, value: Any, said: str) -> None:
    wishes: dict[str, Any] = dict.fromkeys(("consistency", "max_staleness", "ttl", "workload"))
    with pytest.raises(ClientError) as raised:
        Wish.of(**{**wishes, name: value})
    assert raised.value.where == f"fetch: {name}" and repr(value) in raised.value.message
    assert said in raised.value.hint


@pytest.mark.parametrize("given", [{"ttl": "long"}, {"tables": "item"}, {"tags": "a"}, {"negative_ttl": -1}])
def test_a_wrong_term_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        DistribCache().cached(**given)
    assert raised.value.where == f"cached: {next(iter(given))}" and raised.value.hint


def test_what_cannot_be_cached_is_said_where_it_is_decorated() -> None:
    cache = DistribCache()

    async def rows(number: int) -> Any:
        yield number

    def numbers() -> Any:
        yield 1

    for wrong in (rows, numbers, 60):
        with pytest.raises(ConfigError, match="cached") as raised:
            cache.cached()(wrong)  # type: ignore[type-var]
        assert raised.value.hint
    with pytest.raises(ConfigError, match="60 is no function"):
        cache.cached(60)  # type: ignore[call-overload]
    for tag in ("page:{nope}", "page:{}", "page:{0}"):
        with pytest.raises(ConfigError, match="names no argument") as raised:
            cache.cached(tags=[tag])(lambda number: number)
        assert "number" in raised.value.hint
    cache.cached(tags=["page:{number.real}", "all", "a {{b}}"])(lambda number: number)


def test_a_decorator_without_terms() -> None:
    runs = []
    with DistribCache() as cache:

        @cache.cached
        def twice(number: int) -> int:
            runs.append(number)
            return 2 * number

        assert twice(4) == 8
        until(lambda: cache.stats().fills.get("stored"))
        assert twice(4) == 8 and runs == [4]
        twice.invalidate(4)
        assert twice(4) == 8 and runs == [4, 4]
        assert cache.cached(functools.partial(pow, 2))(5) == 32


def test_an_entry_is_bytes_and_lives_for_a_duration() -> None:
    assert CacheEntry(b"a", ttl="5min").ttl == 300
    for wrong in ("text", 5, None):
        with pytest.raises(TypeError, match="are bytes"):
            CacheEntry(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="CacheEntry: ttl"):
        CacheEntry(b"a", ttl="long")


def test_lines_for_people_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with DistribCache(DistribCacheConfig(upstream_url="postgresql://app@127.0.0.1:1/shop")) as cache:
        until(lambda: cache.stats().reason == "unreachable")
        assert not cache.ready_sync("20ms")
        stopped = DistribCache().stats()
        assert stopped.reason == "stopped" and "async with" in stopped.hint
    with DistribCache(DistribCacheConfig(cache_enabled=False)) as disabled:
        assert disabled.stats().reason == "disabled" and "cache.enabled" in disabled.stats().hint
    with DistribCache() as timed:
        assert timed.ready_sync()
        assert timed.stats().invalidation == "ttl" and "upstream.url" in timed.stats().hint
    found = {record.getMessage() for record in caplog.records if record.name == "distribcache"}
    assert not [line for line in found if "not cached (stopped)" in line]
    assert any("unreachable" in line and "upstream.url" in line for line in found)


def test_errors_one_for_one() -> None:
    from distribcache import errors

    names = "Miss Expired TooLarge TierUnavailable PeerNotFound Serialization Compression Storage Network Invalidation"
    for name in names.split():
        assert issubclass(getattr(errors, f"{name}Error"), CacheError)
    assert ConfigurationError is ConfigError and CacheConnectionError is UpstreamError


@pytest.mark.parametrize(
    ("written", "meant"),
    [("item", ("public", "item")), ("Sales.Item", ("sales", "item")), ('"Odd ""name"""', ("public", 'Odd "name"')),
     ('sales."It.em"', ("sales", "It.em"))],
)  # fmt: skip
def test_names_of_tables(written: str, meant: tuple[str, str]) -> None:
    assert qualified(written) == meant


@pytest.mark.parametrize("written", ["", "a.b.c", "a b", '"a', "a.", ".a", "a;b c", 'a"b"'])
def test_what_is_no_name_of_a_table(written: str) -> None:
    with pytest.raises(InvalidationError):
        qualified(written)


def test_placeholders_of_psycopg() -> None:
    assert translate("a %s b %s %%", (1, 2)).text == "a $1 b $2 %"
    named = translate("%(a)s %(b)s %(a)s", ({"a": 1, "b": 2},))
    assert (named.text, named.args) == ("$1 $2 $1", (1, 2))
    assert translate("a LIKE 'x%'", ()).text == "a LIKE 'x%'"
    assert translate("a = $1", (1,)).text == "a = $1"
    for wrong, args in [("%s", (1, 2)), ("%(a)s", (1,)), ("%s", ({"a": 1},)), ("100%", (1,)), ("%(a)s", ({"b": 1},))]:
        with pytest.raises(ClientError):
            translate(wrong, args)


def test_flights_belong_to_who_leads() -> None:
    flights = Flights()
    flight = flights.lead("a")
    assert flight is not None and flights.lead("a") is None
    assert flights.join("a") is None  # one's own
    flight.owner = object()
    assert flights.join("a") is flight
    flights.land("a", flight)
    assert flight.done.done() and not len(flights)
    again = flights.lead("a")
    assert again is not None
    flights.land("a", flight)  # not this one
    assert "a" in flights


def test_marks_are_bounded_and_forget_nothing() -> None:
    marks = Marks(2)
    marks.add("a", 1)
    marks.add("b", 2)
    marks.add("c", 3)
    assert marks.reaches("c", 3) and not marks.reaches("c", 4)
    assert marks.reaches("a", 1) and not marks.reaches("a", 2)


def test_heat_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr(heat, "wall_time", lambda: now[0])
    sums = Heat()
    for number in range(200):
        label = f"SELECT {number} FROM t{number}"
        entry = make_entry(
            b"", fill=0, analysis=0, slots=(), epoch=0, expires=0, cost_ns=1000, at_ns=0, tables=f"public.t{number}",
            workload="oltp",
        )
        sums.note((entry, (number,), label) if number % 2 == 0 else (None, f"public.t{number}", label, "oltp"))
    cells = sums.cells()
    assert len(cells) == 130 and sum(cell.accesses for cell in cells if cell.kind == "table") == 200
    assert {cell.name for cell in cells} >= {"other", "public.t1", "SELECT $1 FROM t1"}
    now[0] += 8 * 86400
    sums.note((None, "", "f", "olap"))
    assert len(sums.cells()) == 1
    shares = [(share.workload, share.hits, share.misses) for share in sums.shares()]
    assert shares == [("oltp", 100, 100), ("olap", 0, 1)]


async def test_stories_for_tasks_and_threads() -> None:
    async def later(value: int) -> int:
        await asyncio.sleep(0)
        return value

    def story(step: Any) -> Steps[list[Any]]:
        found = [(yield step), (yield 2)]
        try:
            yield failing
        except LookupError:
            found.append("failed")
        found.append((yield Wait(never, 0.01)))
        return found

    failing: Future[None] = Future()
    failing.set_exception(LookupError())
    never: Future[None] = Future()
    assert await go(story(later(1))) == [1, 2, "failed", False]
    assert await asyncio.to_thread(block, story(1)) == [1, 2, "failed", False]
    assert not never.cancelled()


def test_importing_the_package_imports_no_driver() -> None:
    code = "import sys, distribcache; print([n for n in ('psycopg', 'asyncpg', 'msgpack') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert set(distribcache.__all__) >= {"DistribCache", "DistribCacheConfig", "QueryContext", "QueryFingerprint"}
    with pytest.raises(AttributeError):
        distribcache.nothing  # noqa: B018


def test_a_setting_that_can_never_work_is_said_at_start() -> None:
    settings = {"l3_peers": "127.0.0.1:1", "l3_password_file": "/no/such/file"}
    with pytest.raises(ConfigError), DistribCache(DistribCacheConfig(**settings), log=lambda _: None):
        pass


def test_statistics_are_plain_values() -> None:
    with DistribCache(DistribCacheConfig(), log=lambda _: None) as cache:
        found = json.loads(json.dumps(cache.stats().as_dict()))
    assert found["invalidation"] == "ttl" and found["tiers"]["L1"]["entries"] == 0


async def test_of_a_database_that_is_never_followed_nothing_is_kept_by_time() -> None:
    """No commit would end what was made of its tables."""
    calls: list[int] = []
    items = QueryFingerprint.from_query("SELECT * FROM item")
    config = DistribCacheConfig(upstream_url="postgresql://app@127.0.0.1:1/template1")
    async with DistribCache(config, log=lambda _: None) as cache:

        @cache.cached(ttl=60, tables=["item"])
        async def made() -> int:
            calls.append(1)
            return len(calls)

        assert [await made(), await made(), await made()] == [1, 2, 3]
        assert await cache.get(items) is None
        assert not await cache.insert(items, CacheEntry(b"x", ttl=60)) and await cache.get(items) is None
        assert cache.stats().reason == "template_database" and "stored" not in cache.stats().fills

"""What a statement that goes upstream may change: deny by default, and exactly what is written down for the rest."""

from __future__ import annotations

import pytest

from distribcache.sql.cacheability import Kind, Parsed, Statement
from distribcache.sql.effects import NEUTRAL, UNKNOWN, Effects, effects
from distribcache.sql.parse import read


def of(text: str, *, pure: bool = False) -> Effects:
    return effects(text.encode(), read(text.encode()), pure=pure)


def letters(one: Effects) -> str:
    flags = {"impure": one.impure, "opaque": one.opaque, "ddl": one.ddl, "poll": one.poll}
    return " ".join(name for name, is_set in flags.items() if is_set)


TABLE = {
    "BEGIN": "",
    "COMMIT": "",
    "ROLLBACK": "",
    "SAVEPOINT a": "",
    "RELEASE a": "",
    "ROLLBACK TO a": "",
    "": "",
    ";": "",
    "SHOW work_mem": "",
    "UNLISTEN *": "opaque",
    "CLOSE ALL": "",
    "CLOSE c": "",
    "DEALLOCATE a": "",
    "DEALLOCATE ALL": "",
    "SET TRANSACTION READ ONLY": "opaque",
    "SET work_mem = '1MB'": "opaque",
    "SET LOCAL work_mem = '1MB'": "opaque",
    "RESET ALL": "opaque",
    "DISCARD ALL": "opaque",
    "DISCARD PLANS": "opaque",
    "INSERT INTO t VALUES (1)": "impure opaque",
    "UPDATE t SET a = f(1)": "impure opaque",
    "DELETE FROM t": "impure opaque",
    "COPY t FROM STDIN": "impure opaque",
    "SELECT a FROM t FOR UPDATE": "impure opaque",
    "SELECT f(1)": "impure opaque poll",
    "DO $$ BEGIN END $$": "impure opaque poll",
    "CALL p()": "impure opaque poll",
    "EXECUTE a": "impure opaque poll",
    "EXPLAIN ANALYZE SELECT f(1)": "impure opaque poll",
    "DECLARE c CURSOR FOR SELECT f(1)": "impure opaque poll",
    "FETCH ALL FROM c": "impure opaque poll",
    "LOCK TABLE t": "impure",
    "LISTEN a": "impure opaque",
    "NOTIFY a": "impure",
    "PREPARE a AS SELECT 1": "impure",
    "PREPARE TRANSACTION 'a'": "impure opaque",
    "COMMIT PREPARED 'a'": "impure opaque ddl",
    "ROLLBACK PREPARED 'a'": "impure opaque ddl",
    "CREATE TABLE t (a int)": "impure opaque ddl",
    "GRANT SELECT ON t TO u": "impure opaque ddl",
    "ALTER ROLE u SET search_path = x": "impure opaque ddl",
    "CREATE DATABASE d": "impure opaque ddl",
}


@pytest.mark.parametrize("text", TABLE)
def test_one_statement(text: str) -> None:
    assert letters(of(text)) == TABLE[text]


def test_a_proven_pure_read_has_none() -> None:
    assert of("SELECT f(1)", pure=True) is NEUTRAL


@pytest.mark.parametrize("text", ["SELEC", "SELECT '", "VACUUM (SOMETHING_NEW"])
def test_what_is_not_understood_may_do_everything(text: str) -> None:
    assert read(text.encode()).error
    assert of(text) is UNKNOWN
    assert letters(UNKNOWN) == "impure opaque ddl poll"


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_its_effects_and_only_a_few_have_none(kind: Kind) -> None:
    """A kind that is added later is UNKNOWN until it is written down."""
    harmless = {
        Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT, Kind.RELEASE, Kind.ROLLBACK_TO, Kind.EMPTY, Kind.SHOW,
        Kind.CLOSE, Kind.DEALLOCATE,
    }  # fmt: skip
    found = effects(b"?", Parsed((Statement(kind, name="x"),)), pure=False)
    assert (letters(found) == "") == (kind in harmless)
    if kind is Kind.OTHER:
        assert found is UNKNOWN


@pytest.mark.parametrize("spaces", ["", "\n", "  "])
def test_the_pool_reset_of_asyncpg_is_known_by_its_text(spaces: str) -> None:
    text = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"
    assert letters(of(spaces + text + spaces)) == "opaque"
    assert "impure" in letters(of(text.replace("pg_advisory_unlock_all", "pg_advisory_lock_all")))
    assert "impure" in letters(of(text + " SELECT f()"))


def test_several_statements_do_what_any_of_them_does() -> None:
    both = of("SET a.b = 'x'; DEALLOCATE p; DEALLOCATE q; CREATE DATABASE d TEMPLATE e; RESET work_mem")
    assert letters(both) == "impure opaque ddl"
    assert both.forgets == {b"p", b"q"}
    assert both.settings == ("a.b", "work_mem")
    assert set(both.databases) >= {"e"}
    assert of("DEALLOCATE p; DISCARD ALL").forgets is None


@pytest.mark.parametrize(
    ("text", "forgets"),
    [
        ("DEALLOCATE a", {b"a"}),
        ('DEALLOCATE PREPARE "A"', {b"A"}),
        ("DEALLOCATE ALL", None),
        ("DISCARD ALL", None),
        ("DISCARD PLANS", set()),
        ("DISCARD SEQUENCES", set()),
        ("DISCARD TEMP", set()),
        ("SELECT 1", set()),
    ],
)
def test_which_prepared_statements_are_gone(text: str, forgets: set[bytes] | None) -> None:
    assert of(text).forgets == forgets


@pytest.mark.parametrize(
    ("text", "databases"),
    [
        ("DROP DATABASE a", {"a"}),
        ("ALTER DATABASE a RENAME TO b", {"a", "b"}),
        ("ALTER DATABASE a SET TABLESPACE x", {"a"}),
        ("CREATE DATABASE a", {"template1"}),
        ("CREATE DATABASE a TEMPLATE b", {"b"}),
        ("ALTER DATABASE a SET work_mem = '1MB'", set()),  # nobody has to leave for that
    ],
)
def test_which_databases_our_own_connections_have_to_leave(text: str, databases: set[str]) -> None:
    assert set(of(text).databases) - ({"a"} if text.startswith("CREATE") else set()) == databases

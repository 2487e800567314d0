"""SQLAlchemy 2 through the library: Core and ORM, both drivers, both manners, and what passes by."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fix_library import Shop
from sqlalchemy import ForeignKey, Numeric, String, create_engine, func, select, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship
from sqlalchemy.pool import NullPool
from wait import until

from distribcache import DistribCache
from distribcache.clock import now_ns
from distribcache.errors import ConfigError
from distribcache.integrations.sqlalchemy import enable

HERE = {"distribcache": True}


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    born: Mapped[dt.date | None]
    worth: Mapped[decimal.Decimal] = mapped_column(Numeric(10, 2))
    books: Mapped[list[Book]] = relationship(back_populates="author", order_by="Book.id")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


@pytest.fixture(scope="module")
def library(shop: Shop) -> Iterator[Shop]:
    engine = create_engine(url(shop, "psycopg"), poolclass=NullPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        ann = Author(name="Ann", born=dt.date(1970, 1, 2), worth=decimal.Decimal("12.50"))
        ann.books = [Book(title="100% tea"), Book(title="Rain")]
        session.add_all([ann, Author(name="Bob", worth=decimal.Decimal(0))])
        session.commit()
    yield shop
    engine.dispose()


def url(shop: Shop, driver: str, user: str = "postgres") -> str:
    return shop.database.url(user).replace("postgresql://", f"postgresql+{driver}://")


@pytest.fixture
def engine(library: Shop, cache: DistribCache) -> Iterator[Engine]:
    made = create_engine(url(library, "psycopg"), pool_size=2)
    enable(made, cache)
    yield made
    made.dispose()


def again(connection: Connection, statement: Any) -> list[Any]:
    """A read that begins outside a transaction, whatever became of the one before."""
    connection.rollback()
    return list(connection.execute(statement, execution_options=HERE).all())


def hit(cache: DistribCache, read: Any) -> Any:
    """What ``read`` gives once it comes from memory."""
    found: list[Any] = []

    def once() -> bool:
        found[:] = [read()]
        return cache.last.status == "hit"

    until(once, lambda: f"{cache.last} {cache.stats()}")
    return found[0]


async def ahit(cache: DistribCache, read: Any) -> Any:
    for _ in range(3000):
        found = await read()
        if cache.last.status == "hit":
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"{cache.last} {cache.stats()}")


async def test_orm_objects_from_memory_are_objects_of_the_session(engine: Engine, cache: DistribCache) -> None:
    def read() -> list[Author]:
        with Session(engine, expire_on_commit=False) as session:
            query = select(Author).options(joinedload(Author.books)).where(Author.id == 1)
            return list(session.scalars(query, execution_options=HERE).unique())

    def story() -> None:
        direct = read()
        found = hit(cache, read)
        assert [type(each) for each in found] == [Author]
        assert (found[0].name, found[0].born, found[0].worth) == ("Ann", dt.date(1970, 1, 2), decimal.Decimal("12.50"))
        titles = [[book.title for book in each[0].books] for each in (found, direct)]
        assert titles == [["100% tea", "Rain"]] * 2
        with Session(engine) as session:
            author = session.scalars(select(Author).where(Author.id == 1), execution_options=HERE).one()
            author.name = "Anna"
            session.commit()
        assert read()[0].name == "Anna"
        with Session(engine) as session:
            session.get_one(Author, 1).name = "Ann"
            session.commit()

    await asyncio.to_thread(story)


async def test_core_text_and_what_looks_odd(engine: Engine, cache: DistribCache) -> None:
    def story() -> None:
        with engine.connect() as connection:
            for statement in (
                select(Book.id).where(Book.title.like("100\\%%")),
                text("SELECT id FROM book WHERE title LIKE '100%' ORDER BY id"),
                select(func.count()).select_from(Book),
                select(Book.id, Book.title).where(Book.id == -1),
                select(Book).where(Book.id.in_([1, 2])).order_by(Book.id),
                select(Author.worth, func.sum(Author.worth).over().label("all")).order_by(Author.id),
            ):
                direct = connection.execute(statement).all()
                connection.rollback()
                assert hit(cache, lambda s=statement: again(connection, s)) == direct
                keys = connection.execute(statement, execution_options=HERE).keys()
                assert list(keys) == list(connection.execute(statement).keys())
                connection.rollback()

    await asyncio.to_thread(story)


async def test_behind_anything_that_was_sent_statements_are_sent(engine: Engine, cache: DistribCache) -> None:
    def story() -> None:
        read = select(Author.name).where(Author.id == 2)
        with Session(engine) as session:
            hit(cache, lambda: (session.rollback(), session.scalar(read, execution_options=HERE)))
            session.execute(text("UPDATE author SET name = 'Bobby' WHERE id = 2"))
            assert session.scalar(read, execution_options=HERE) == "Bobby"
            assert cache.last.status == "bypass"
            session.rollback()
            assert session.scalar(read, execution_options=HERE) == "Bob"
        with Session(engine) as session:
            assert session.scalar(read) == "Bob"  # not asked for: sent
            session.scalar(read, execution_options=HERE)
            assert cache.last.status == "bypass"

    await asyncio.to_thread(story)


async def test_other_isolation_levels_pass_by(library: Shop, cache: DistribCache) -> None:
    def story() -> None:
        made = create_engine(url(library, "psycopg"), isolation_level="REPEATABLE READ", poolclass=NullPool)
        enable(made, cache, every=True)
        with made.connect() as connection:
            for _ in range(3):
                connection.execute(select(Book.id))
                connection.rollback()
        assert cache.stats().hits == 0
        made.dispose()

    await asyncio.to_thread(story)


async def test_two_roles_of_one_engine(library: Shop, cache: DistribCache) -> None:
    def story() -> None:
        made = create_engine(url(library, "psycopg", "app"), pool_size=1, max_overflow=0)
        enable(made, cache, every=True)
        with made.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for role in ("ann", "bob", "ann", "bob"):
                connection.execute(text(f"SET ROLE {role}"))
                rows = connection.execute(text("SELECT body FROM note ORDER BY id")).all()
                assert rows == [(f"of {role}",)]
        made.dispose()

    await asyncio.to_thread(story)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_asynchronous_engines(library: Shop, cache: DistribCache, driver: str) -> None:
    engine = create_async_engine(url(library, driver), pool_size=2)
    enable(engine, cache)

    async def read() -> list[tuple[Any, ...]]:
        async with AsyncSession(engine) as session:
            found = await session.scalars(select(Author).order_by(Author.id), execution_options=HERE)
            return [(each.name, each.born, each.worth) for each in found]

    rows = await ahit(cache, read)
    assert rows == [("Ann", dt.date(1970, 1, 2), decimal.Decimal("12.50")), ("Bob", None, decimal.Decimal(0))]
    async with AsyncSession(engine) as session:
        (await session.get_one(Author, 2)).name = "Rob"
        await session.commit()
    assert (await read())[1][0] == "Rob"
    async with AsyncSession(engine) as session:
        (await session.get_one(Author, 2)).name = "Bob"
        await session.commit()
    strict = {"distribcache": {"consistency": "strict", "ttl": "5s"}}
    async with engine.connect() as connection:

        async def strictly() -> Any:
            await connection.rollback()
            return await connection.scalar(select(Author.id).where(Author.id == 1), execution_options=strict)

        assert await ahit(cache, strictly) == 1
        with pytest.raises(ConfigError, match="there is no tll"):
            await connection.scalar(select(Author.id), execution_options={"distribcache": {"tll": "5s"}})
    await engine.dispose()


async def test_what_cannot_be_enabled_is_named(cache: DistribCache) -> None:
    with pytest.raises(ConfigError, match="sqlite"):
        enable(create_engine("sqlite://"), cache)
    assert issubclass(ArgumentError, Exception)


async def test_a_write_in_autocommit_mode_has_ended_before_it_counts(library: Shop, cache: DistribCache) -> None:
    """It commits where it is executed: a floor raised before that would let a read see what was before."""

    def floors(connection: Connection) -> Iterator[tuple[int, int]]:
        slow = "UPDATE book SET title = title WHERE id = 1 AND pg_sleep(0.05) IS NOT NULL"
        for write in (
            lambda: connection.execute(text(slow)),
            lambda: connection.exec_driver_sql(slow),
            lambda: connection.execute(text(f"{slow} AND id = :id"), [{"id": 1}, {"id": 1}]),
            lambda: connection.execute(text("SELECT pg_sleep(0.05)"), execution_options=HERE),
            lambda: connection.execute(text("DO $$ BEGIN PERFORM pg_sleep(0.05); RAISE division_by_zero; END $$")),
        ):
            began = now_ns()
            with suppress(DBAPIError):
                write()
            yield began + 50_000_000, cache._keeper.coherence.floor_ns

    def story() -> None:
        made = create_engine(url(library, "psycopg"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        enable(made, cache)
        with made.connect() as connection:
            found.extend(floors(connection))
        made.dispose()

    found: list[tuple[int, int]] = []
    await asyncio.to_thread(story)
    engine = create_async_engine(url(library, "asyncpg"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    enable(engine, cache)
    async with engine.connect() as connection:
        await connection.run_sync(lambda inner: found.extend(floors(inner)))
    await engine.dispose()
    assert len(found) == 10 and all(floor >= ended for ended, floor in found), found

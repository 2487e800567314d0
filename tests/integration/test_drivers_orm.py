"""SQLAlchemy 2 and Django 5 through the proxy: engines, pools with pre-ping, sessions, atomic blocks; all get hits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from fix_world import World, until_hits
from sqlalchemy import Engine, Numeric, String, create_engine, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String)
    price: Mapped[Decimal] = mapped_column(Numeric)


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(String)


# ---- SQLAlchemy -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[Engine]:
    made = create_engine(world.proxy.url(driver="postgresql+psycopg"), pool_pre_ping=True, pool_size=2)
    yield made
    made.dispose()


def test_core_reads_in_transactions(world: World, engine: Engine) -> None:
    statement = select(Item.name, Item.price).where(Item.id == 7)

    def reads() -> None:
        for _ in range(3):
            with engine.connect() as connection:  # a BEGIN, and a ROLLBACK at its end; pre-ping before it
                assert connection.execute(statement).one() == ("item 7", Decimal("10.5"))

    until_hits(world, reads, 3)
    with engine.connect() as connection:
        connection.execute(statement)
        shown = connection.execute(text("SHOW distribcache.last")).one()
        assert (shown.status, shown.tier, shown.tables) == ("hit", "L1", "public.item")


def test_core_reads_in_autocommit(world: World, engine: Engine) -> None:
    def reads() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            assert connection.execute(select(func.count()).select_from(Item)).scalar_one() == 100

    until_hits(world, reads)


def test_orm_session_reads(world: World, engine: Engine) -> None:
    def reads() -> None:
        with Session(engine) as session:
            assert session.get_one(Item, 5).name == "item 5"
            items = session.scalars(select(Item).where(Item.id.in_([1, 2, 3])).order_by(Item.id)).all()
            assert [item.price for item in items] == [Decimal("1.5"), Decimal("3.0"), Decimal("4.5")]
            with session.begin_nested():
                assert session.scalar(select(Item.name).where(Item.id == 6)) == "item 6"

    until_hits(world, reads, 3)


def test_orm_session_writes_are_read_back(world: World, engine: Engine) -> None:
    for number in range(5):
        with Session(engine) as session, session.begin():
            session.add_all([Note(body=f"note {number}"), Note(body="other")])
        with Session(engine) as session:
            assert session.scalars(select(Note.body).order_by(Note.id)).all() == [f"note {number}", "other"]
            session.add(Note(body="never"))
            session.flush()
            assert session.scalar(select(func.count()).select_from(Note)) == 3
            session.rollback()
            assert session.scalar(select(func.count()).select_from(Note)) == 2
            session.execute(delete(Note))
            session.commit()
            assert session.scalars(select(Note.body)).all() == []


def test_stream_results(engine: Engine) -> None:
    with engine.connect().execution_options(stream_results=True, yield_per=7) as connection:
        for _ in range(2):
            assert [row[0] for row in connection.execute(select(Item.id).order_by(Item.id))] == list(range(1, 101))


async def test_asyncpg_engine(world: World) -> None:
    engine = create_async_engine(world.proxy.url(driver="postgresql+asyncpg"), pool_pre_ping=True, pool_size=2)
    try:

        async def reads() -> None:
            async with AsyncSession(engine) as session:
                assert (await session.get_one(Item, 5)).name == "item 5"
                assert await session.scalar(select(Item.price).where(Item.id == 4)) == Decimal("6.0")

        async with asyncio.timeout(60):
            gained = 0.0
            while gained < 2:
                before = await asyncio.to_thread(world.hits)
                await reads()
                gained = await asyncio.to_thread(world.hits) - before
        async with AsyncSession(engine) as session, session.begin():
            session.add(Note(body="asynchronous"))
        async with AsyncSession(engine) as session, session.begin():
            assert (await session.scalars(select(Note.body))).all() == ["asynchronous"]
            await session.execute(delete(Note))
        async with AsyncSession(engine) as session:
            assert (await session.scalars(select(Note.body))).all() == []
    finally:
        await engine.dispose()


# ---- Django ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def django(world: World) -> Iterator[Any]:
    """Models of a minimal project whose HOST and PORT are the proxy's."""
    import django as package
    from django.conf import settings
    from django.db import connections, models

    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": world.proxy.database,
                "USER": "postgres",
                "HOST": world.proxy.host,
                "PORT": str(world.proxy.port),
                "CONN_MAX_AGE": None,
                "CONN_HEALTH_CHECKS": True,
            }
        },
        INSTALLED_APPS=[],
        USE_TZ=True,
    )
    package.setup()

    class Thing(models.Model):
        name = models.TextField()
        price = models.DecimalField(max_digits=10, decimal_places=2)

        class Meta:
            app_label = "shop"
            db_table = "item"
            managed = False

    class Remark(models.Model):
        body = models.TextField()

        class Meta:
            app_label = "shop"
            db_table = "note"
            managed = False

    class Project:
        thing = Thing
        remark = Remark

    yield Project
    connections.close_all()


def test_django_reads(world: World, django: Any) -> None:
    def reads() -> None:
        thing = django.thing.objects.get(pk=7)
        assert (thing.name, thing.price) == ("item 7", Decimal("10.5"))
        assert list(django.thing.objects.filter(id__lte=3).order_by("id").values_list("name", flat=True)) == [
            "item 1", "item 2", "item 3",
        ]  # fmt: skip
        assert django.thing.objects.count() == 100
        assert django.thing.objects.filter(pk=1000).exists() is False

    until_hits(world, reads, 4)


def test_django_atomic_with_savepoints(world: World, django: Any) -> None:
    from django.db import IntegrityError, connection, transaction

    def reads() -> None:
        with transaction.atomic():
            assert django.thing.objects.get(pk=1).name == "item 1"
            with transaction.atomic():
                assert django.thing.objects.get(pk=2).name == "item 2"
            assert django.thing.objects.get(pk=3).name == "item 3"

    until_hits(world, reads, 3)
    with connection.cursor() as cursor:
        cursor.execute("SHOW distribcache.last")
        assert cursor.fetchone()[:2] == ("hit", "L1")
    with transaction.atomic():
        remark = django.remark.objects.create(body="first")
        with pytest.raises(IntegrityError), transaction.atomic():
            django.remark.objects.create(pk=remark.pk, body="second")
        assert [each.body for each in django.remark.objects.all()] == ["first"]
    assert django.remark.objects.count() == 1
    django.remark.objects.all().delete()
    assert django.remark.objects.count() == 0
    until_hits(world, reads, 3)


def test_django_iterator_uses_a_server_side_cursor(django: Any) -> None:
    for _ in range(2):
        names = [each.name for each in django.thing.objects.order_by("id").iterator(chunk_size=9)]
        assert names == [f"item {number}" for number in range(1, 101)]

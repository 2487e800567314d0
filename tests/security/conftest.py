"""One proxy and one server per file for attacks that must leave them unharmed; asserted again when the file ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fix_postgres import QUIET, Database, create_database, drop_database
from fix_proxy import ProxyProcess, proxies
from people import SCRAM_HBA, add_users
from relay import Relay

from distribcache.cli.postgres import Postgres


@pytest.fixture(scope="module")
def shared_shop(postgres: Postgres) -> Iterator[Database]:
    made = create_database(postgres, "attacked")
    made.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL)",
        "INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 100) i",
    )
    yield made
    drop_database(made)


@contextmanager
def unharmed(url: str) -> Iterator[ProxyProcess]:
    with proxies() as make:
        proxy = make(url)
        yield proxy
        assert proxy.process.poll() is None
        assert "Traceback" not in "".join(proxy.log)


@pytest.fixture(scope="module")
def shared_proxy(shared_shop: Database) -> Iterator[ProxyProcess]:
    with unharmed(shared_shop.url()) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def scram_server() -> Iterator[Postgres]:
    with Postgres(hba=SCRAM_HBA, options=QUIET) as server:
        add_users(server)
        yield server


@pytest.fixture(scope="module")
def scram_proxy(scram_server: Postgres) -> Iterator[ProxyProcess]:
    with unharmed(scram_server.url()) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def relay(shared_shop: Database) -> Iterator[Relay]:
    with Relay(shared_shop.server.port, only=b"victim") as relay:
        yield relay


@pytest.fixture(scope="module")
def evil(relay: Relay, shared_shop: Database) -> Iterator[ProxyProcess]:
    """A proxy whose victim connections see a server that misbehaves; its own connections do not."""
    with unharmed(f"postgresql://postgres@127.0.0.1:{relay.port}/{shared_shop.name}") as proxy:
        yield proxy

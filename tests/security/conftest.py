"""One proxy and one server per file for attacks that must leave them unharmed; asserted again when the file ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_postgres import Database, create_database, drop_database
from fix_proxy import ProxyProcess, proxies
from people import SCRAM_HBA, add_users

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


@pytest.fixture(scope="module")
def shared_proxy(shared_shop: Database) -> Iterator[ProxyProcess]:
    with proxies() as make:
        proxy = make(shared_shop.url())
        yield proxy
        assert proxy.process.poll() is None
        assert "Traceback" not in "".join(proxy.log)


@pytest.fixture(scope="session")
def scram_server() -> Iterator[Postgres]:
    with Postgres(hba=SCRAM_HBA) as server:
        add_users(server)
        yield server


@pytest.fixture(scope="module")
def scram_proxy(scram_server: Postgres) -> Iterator[ProxyProcess]:
    with proxies() as make:
        proxy = make(scram_server.url())
        yield proxy
        assert proxy.process.poll() is None
        assert "Traceback" not in "".join(proxy.log)

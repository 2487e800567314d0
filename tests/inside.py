"""What a proxy in the test's own process holds."""

from __future__ import annotations

from fix_postgres import Database
from fix_proxy import InnerProxy
from wait import until

from distribcache.clock import now_ns
from distribcache.coherence.keeping import Keeping
from distribcache.coherence.ledger import W
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.lsn import normalise
from distribcache.tiers.warm import WarmCache

__all__ = ["coherence_of", "keeping_of", "prove", "quiet", "seen", "warm_of"]


def warm_of(proxy: InnerProxy) -> WarmCache:
    """L2."""
    near = proxy.proxy.node.store.stack.near
    assert isinstance(near, WarmCache)
    return near


def coherence_of(proxy: InnerProxy) -> DatabaseCoherence:
    """Of the database that is followed."""
    return next(each for each in proxy.proxy.databases if isinstance(each, DatabaseCoherence))


def keeping_of(proxy: InnerProxy) -> Keeping:
    """What a warm restart goes on from."""
    found = coherence_of(proxy)._keeping
    assert found is not None
    return found


def seen(proxy: InnerProxy, database: Database) -> None:
    """Wait until all that was committed has been applied."""
    (position,) = database.execute("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")[0]
    coherence = coherence_of(proxy)
    coherence.note_traffic()
    until(lambda: coherence.words[W] >= normalise(int(position)), lambda: f"late: {coherence.report()}")


def prove(proxy: InnerProxy) -> None:
    """Answers go down once a proof has settled them, and with a large ``max_staleness`` nobody is in a hurry."""

    async def wait() -> None:
        await coherence_of(proxy).wait_fresh(now_ns(), 5.0)

    proxy.call(wait(), 60)


def quiet(proxy: InnerProxy, database: Database) -> None:
    """The same, and until no look at the catalogue is due."""
    seen(proxy, database)
    until(proxy.settled, "never settled")

"""Sessions that are played twice: directly on one server, and through the proxy on its twin with the same history.

Steps are sequential: the next one begins when both sides have answered. So both must answer the same, message for
message: rows byte for byte, types, command tags, SQLSTATEs, the state of the transaction, parameters that are reported.
Object ids may differ as long as they do so consistently.

Rules:
1. A step is bytes that end in exactly one ReadyForQuery, and who says them: one of the sessions, or the *outside*,
   whose changes reach both servers around the proxy.
2. Nothing may wait for a lock: steps that could are not played (``Twins.allowed``). A transaction that was only begun
   here holds no locks of what it read from memory; that is the one difference that clients may see.
3. A strict session is never told more than that. One that is not reads behind a change only when the proxy has applied
   it, for what it may miss until then is no error. DDL from outside is waited for always (coherence rule R6); what
   only polls tell, for as long as a poll takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fix_proxy import InnerProxy
from rawclient import RawClient
from twin_stock import STOCK, TIDY
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.clock import now_ns
from distribcache.coherence.ledger import W
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.lsn import normalise
from distribcache.wire.facts import Column
from distribcache.wire.messages import query, read_error, read_parameter_description, read_row_description

__all__ = ["OUTSIDE", "Difference", "Step", "Twins", "told"]

OUTSIDE = -1
_OURS = 16384
"""Object ids from here on are not the server's own."""
_ROLES = ("ALTER ROLE", "GRANT team", "REVOKE team")
"""How DDL of roles begins: it concerns all databases, so that event triggers say nothing of it."""


@dataclass(frozen=True, slots=True)
class Step:
    """``who`` says ``data``. ``kind``: read, write, ddl, session (concerns nobody else) or control."""

    who: int
    kind: str
    data: bytes
    text: str

    def __str__(self) -> str:
        name = "outside" if self.who == OUTSIDE else f"session {self.who}"
        return f"{name}, {self.kind}: {self.text}"


class Difference(AssertionError):
    """The proxy answered otherwise than PostgreSQL."""

    def __init__(self, step: Step, wanted: object, got: object, steps: Sequence[Step]) -> None:
        super().__init__(step, wanted, got)
        self.step, self.wanted, self.got, self.steps = step, wanted, got, list(steps)

    def __str__(self) -> str:
        steps = "\n".join(f"  {each}" for each in self.steps)
        return f"{self.step}\n  directly: {self.wanted}\n  through the proxy: {self.got}\nafter\n{steps}"


@dataclass(slots=True)
class Pair:
    """One session on both sides."""

    user: str
    consistency: str
    direct: RawClient
    through: RawClient
    status: bytes = b"I"
    wrote: bool = False
    locked: bool = False
    names: dict[bytes, str] = field(default_factory=dict)

    def close(self) -> None:
        self.direct.socket.close()
        self.through.socket.close()


class Twins:
    """Two servers with one history, the second behind a proxy inside this process."""

    def __init__(self, direct: Postgres, upstream: Postgres, proxy: InnerProxy) -> None:
        self.direct, self.upstream, self.proxy = direct, upstream, proxy
        self.pairs: list[Pair] = []
        self.oids: dict[int, int] = {}
        self.prepared = False
        self.behind: set[str] = set()
        """Consistencies that something does not bind which the proxy may not have applied yet."""
        self.late = False
        """See ``gusts``: the stream comes in gusts, as if the network were bad."""
        self.polled = False
        """Are changes of roles from outside seen by polls only, as with pgoutput?"""
        self.stocked: Callable[[], None] = lambda: None
        """Called when a run's tables are there."""
        self.outside = self._pair("postgres", "", outside=True)
        for client in (self.outside.direct, self.outside.through):
            for role in ("alice LOGIN", "bob LOGIN", "team"):
                client.exchange(query(b"CREATE ROLE " + role.encode()))

    # -- sessions

    def _pair(self, user: str, consistency: str, *, outside: bool = False) -> Pair:
        there = (self.upstream.host, self.upstream.port) if outside else (self.proxy.host, self.proxy.port)
        # Nothing should wait for a lock; if it does, an error is better than a test that hangs.
        options = "-c lock_timeout=8s" + (f" -c distribcache.consistency={consistency}" if consistency else "")
        here = RawClient(self.direct.host, self.direct.port, "postgres", user, options=options, seconds=60)
        return Pair(user, consistency, here, RawClient(*there, "postgres", user, options=options, seconds=60))

    def reset(self, people: Sequence[tuple[str, str]]) -> None:
        """The same beginning again, on both sides, for these (user, consistency)."""
        self.close()
        outside = self.outside
        for client in (outside.direct, outside.through):
            for text in (TIDY, STOCK):
                errors = [each for each in client.exchange(query(text.encode())) if each[:1] == b"E"]
                assert not errors, read_error(memoryview(errors[0])[5:]).text
        self.oids.clear()
        self.stocked()
        self.catch_up()
        self.pairs = [self._pair(*one) for one in people]

    def close(self) -> None:
        """Nobody is there any more."""
        for pair in self.pairs:
            pair.close()
        self.pairs = []
        if self.prepared:
            for client in (self.outside.direct, self.outside.through):
                client.exchange(query(b"ROLLBACK PREPARED 'p'"))
            self.prepared = False

    # -- the proxy

    @property
    def coherence(self) -> DatabaseCoherence:
        return next(each for each in self.proxy.proxy.databases if isinstance(each, DatabaseCoherence))

    def hits(self) -> int:
        return self.proxy.proxy.node.hits()

    def catch_up(self, *, polled: bool = False) -> None:
        """Wait until all that was written is applied, and hits are served; ``polled``: roles were looked at too."""
        (((position,),)) = self.outside.through.rows(query(b"SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn"))
        target = normalise(int(position or 0))
        coherence, loop, began = self.coherence, self.proxy._loop, now_ns()

        def done() -> bool:
            loop.call_soon_threadsafe(coherence.note_traffic)
            looked = not polled or coherence.coverage.quick_at > began
            return looked and coherence.serving and coherence.words[W] >= target

        until(done, lambda: f"never caught up: {coherence.report()}")
        self.behind.clear()

    # -- steps

    def allowed(self, step: Step) -> bool:
        """Could ``step`` be played now without waiting for a lock?"""
        others = [pair for at, pair in enumerate(self.pairs) if at != step.who]
        if any(pair.locked for pair in others):
            return step.kind == "control" and step.text.startswith("ROLLBACK") and self.pairs[step.who].status != b"I"
        if step.kind == "ddl":
            return not self.prepared and all(pair.status == b"I" for pair in others)
        if step.kind == "write":
            return not self.prepared and not any(pair.wrote for pair in others)
        if "TRANSACTION 'p'" in step.text:
            return not self.prepared and not self.pairs[step.who].locked
        return True

    def play(self, step: Step) -> tuple[list[bytes], list[bytes]] | None:
        """Both answers to one step, if they differ."""
        pair = self.outside if step.who == OUTSIDE else self.pairs[step.who]
        if step.kind == "reconnect":
            at = self.pairs.index(pair)
            pair.close()
            fresh = self.pairs[at] = self._pair(pair.user, pair.consistency)
            greetings = _reported(fresh.direct.greeting), _reported(fresh.through.greeting)
            return None if greetings[0] == greetings[1] else greetings
        if pair.consistency in self.behind:
            self.catch_up()
        if step.kind == "read":  # while a change is young
            got, wanted = pair.through.exchange(step.data), pair.direct.exchange(step.data)
        else:
            wanted, got = pair.direct.exchange(step.data), pair.through.exchange(step.data)
        failed = pair.status == b"E"
        pair.status = wanted[-1][-1:]
        if pair.status == b"I":
            pair.wrote = pair.locked = False
        pair.wrote = pair.status != b"I" and (pair.wrote or step.kind == "write")
        pair.locked = pair.status != b"I" and (pair.locked or step.kind == "ddl")
        tags = [each[5:-1] for each in wanted if each[:1] == b"C"]
        if b"PREPARE TRANSACTION" in tags:
            self.prepared = True
        if b"COMMIT PREPARED" in tags or b"ROLLBACK PREPARED" in tags:
            self.prepared = False
        if step.kind != "read":
            self.behind |= {"eventual", "session"} if step.who == OUTSIDE else {"eventual"}
        if step.who == OUTSIDE and step.kind == "ddl":
            self.catch_up(polled=self.polled and step.text.startswith(_ROLES))
        return None if self._alike(wanted, got, failed) else (wanted, got)

    def _alike(self, wanted: list[bytes], got: list[bytes], failed: bool) -> bool:
        return len(wanted) == len(got) and all(self._same(*both, failed) for both in zip(wanted, got, strict=True))

    def _same(self, wanted: bytes, got: bytes, failed: bool) -> bool:
        """In a failed transaction errors may be found in another order."""
        if wanted == got:
            return True
        if wanted[:1] != got[:1]:
            return False
        if wanted[:1] in (b"E", b"N"):
            ours, theirs = (read_error(memoryview(each)[5:]) for each in (wanted, got))
            return failed or (ours.sqlstate, ours.text) == (theirs.sqlstate, theirs.text)
        if wanted[:1] == b"T":
            both = [read_row_description(memoryview(each)[5:]).columns for each in (wanted, got)]
            return len(both[0]) == len(both[1]) and all(self._same_column(*each) for each in zip(*both, strict=True))
        if wanted[:1] == b"t":
            lists = [read_parameter_description(memoryview(each)[5:]) for each in (wanted, got)]
            return len(lists[0]) == len(lists[1]) and all(self._same_oid(*each) for each in zip(*lists, strict=True))
        return False

    def _same_column(self, wanted: Column, got: Column) -> bool:
        ids = self._same_oid(wanted.table, got.table) and self._same_oid(wanted.type_oid, got.type_oid)
        return ids and replace(wanted, table=got.table, type_oid=got.type_oid) == got

    def _same_oid(self, wanted: int, got: int) -> bool:
        if min(wanted, got) < _OURS:
            return wanted == got
        return self.oids.setdefault(got, wanted) == wanted


def _reported(greeting: list[bytes]) -> list[bytes]:
    return sorted(each for each in greeting if each[:1] == b"S")


def told(messages: list[bytes]) -> str:
    """An answer, for people."""
    return " ".join(
        f"E({read_error(memoryview(each)[5:]).text})" if each[:1] == b"E" else f"{each[:1].decode()}{each[5:]!r}"
        for each in messages
    )

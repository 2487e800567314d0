"""Messages of the change stream → facts: what all output plugins share, and the text of ``test_decoding``. No IO, no
time, no waiting. The binary messages of ``pgoutput`` are read in ``pgoutput``.

What it must do: tell, for each committed transaction, its xid, the end of its commit record, the relations whose
rows changed and, where somebody watches, which rows; and whether it smells of a catalogue change. It must do so
cheaply: a bulk update sends one message per row, and all that counts of it is one name (coherence rule R7).

Rules:
1. A change counts at its COMMIT, whose start position is the end of the commit record. Nothing is reported before.
2. A name is taken as printed (``schema.relation``, quoted as ``quote_identifier`` does). The cheap path cuts at the
   first ``": "`` and only looks the piece up among names already met in this transaction. That is safe: a cut inside
   quotes leaves them unbalanced, so it never equals a complete name.
3. A transaction without any row is what DDL looks like: ``empty``. One that holds nothing but our own flush message
   is not.
4. A text that is not understood is never skipped: ``ProtocolError``; the reader then starts anew with a new epoch.
5. Tuples are read only where there is a plan for the relation (``watching``), and only of its first rows in the
   transaction: with more than ``BULK`` of them its wildcards are touched, once. So they are by TRUNCATE.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from distribcache.coherence.tuples import Change, read_change, strange
from distribcache.coherence.watching import Plan

__all__ = [
    "BULK", "DDL_PREFIX", "FLUSH_PREFIX", "LEAVE_LOCK", "LEAVE_PREFIX", "Collector", "Commit", "Decoder", "names_of",
]

BULK: Final = 1000
"""Rows of one relation in one transaction that are looked at one by one."""
_MOST_SLOTS: Final = 1 << 16

FLUSH_PREFIX = b"distribcache.flush"
DDL_PREFIX = b"distribcache.ddl"
LEAVE_PREFIX = b"distribcache.leave"
LEAVE_LOCK = (1684229221, 1)
"""The advisory lock that whoever asks a cache to leave holds while it does: everybody may write a message into the log,
but the server tells whose lock it is."""

_LONGEST_NAME = 6 + 2 * (2 * 63 + 2) + 1 + 2  # "table ", two quoted names of doubled quotes, the dot, ": "
_ROW_BYTE = ord("t")
_ROW = (b" INSERT:", b" UPDATE:", b" DELETE:")


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed transaction: ``lsn`` is the end of its commit record, ``names`` the changed relations as the
    plugin names them, ``slots`` what the ledger has for rows and wildcards that it touched.

    ``empty``: no row and no message of ours in it, as with DDL. ``ddl``: the event trigger's message was in it.
    """

    xid: int
    lsn: int
    names: frozenset[bytes]
    empty: bool
    ddl: bool
    rows: int
    leave: bool = False
    """Somebody asked every cache to let go of this database for a while."""
    slots: frozenset[int] = frozenset()


class _Met:
    """A watched relation in the present transaction: the plan that its first row met, and how many rows came."""

    __slots__ = ("plan", "rows")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rows = 0


_UNMET: Final = _Met.__new__(_Met)


class Collector(ABC):
    """Collects one transaction at a time. ``feed`` takes one message, unless ``again`` was enough.

    What a plugin's own decoder adds is how its messages are read.
    """

    __slots__ = ("_ddl", "_flush", "_leave", "_messages", "_met", "_plan_of", "_rows", "_slots", "_xid")

    def __init__(self, plan_of: Callable[[bytes], Plan | None] = lambda _: None) -> None:
        self._plan_of = plan_of
        self._xid = -1
        self._met: dict[bytes, _Met | None] = {}  # None: its name is all that counts
        self._slots: set[int] = set()
        self._rows = 0
        self._messages = 0
        self._flush = 0
        self._ddl = False
        self._leave = False

    @abstractmethod
    def again(self, data: memoryview, at: int) -> bool:
        """Is the message that starts at ``at`` one more row of a relation that this transaction has met?

        Raises ProtocolError like ``feed``.
        """

    @abstractmethod
    def feed(self, data: bytes | memoryview, lsn: int) -> Commit | None:
        """One message and the position it was sent with; returns the transaction when this was its COMMIT.

        Raises ProtocolError when the message is not what the plugin sends.
        """

    @abstractmethod
    def _read(self, data: bytes | memoryview, at: int, wanted: AbstractSet[bytes]) -> Change | None:
        """The row at ``at``; None when all that is known of it is its relation. Raises ProtocolError."""

    def _begin(self, xid: int) -> None:
        if self._xid != -1:
            raise strange("BEGIN inside a transaction")
        self._xid = xid
        self._met = {}
        self._slots = set()
        self._rows = self._messages = self._flush = 0
        self._ddl = self._leave = False

    def _end(self, lsn: int, *, empty: bool) -> Commit:
        """The transaction that has begun is committed."""
        xid, self._xid = self._xid, -1
        slots = self._slots
        for name, met in self._met.items():
            plan = self._plan_of(name)
            if plan is None:
                continue
            if met is None:
                slots |= plan.wildcards
            elif met.plan is not plan:
                slots |= plan.missed_by(met.plan)
        names, self._met, self._slots = frozenset(self._met), {}, set()
        return Commit(xid, lsn, names, empty, self._ddl, self._rows, self._leave, frozenset(slots))

    def _more(self, name: bytes, data: memoryview, at: int) -> bool:
        """Rule 2: count the row at ``at`` if the transaction has met its relation."""
        met = self._met.get(name, _UNMET)
        if met is None:
            self._rows += 1
            return True
        if met is _UNMET:
            return False
        self._rows += 1
        self._row(name, met, data, at)
        return True

    def _changed(self, name: bytes, data: bytes | memoryview, at: int) -> None:
        """A row of a relation that may be new to the transaction."""
        if self._xid == -1:
            raise strange("a row outside a transaction")
        self._rows += 1
        if name not in self._met:
            plan = self._plan_of(name)
            self._met[name] = None if plan is None else _Met(plan)
        met = self._met[name]
        if met is not None:
            self._row(name, met, data, at)

    def _truncated(self, names: list[bytes]) -> None:
        if self._xid == -1:
            raise strange("TRUNCATE outside a transaction")
        self._rows += 1
        self._met.update(dict.fromkeys(names))

    def _row(self, name: bytes, met: _Met, data: bytes | memoryview, at: int) -> None:
        """Rule 5, for the row at ``at``."""
        met.rows += 1
        if met.rows <= BULK and len(self._slots) <= _MOST_SLOTS:
            plan = met.plan
            change = self._read(data, at, plan.wanted)
            if change is not None:
                plan.touch(change, self._slots)
                if not plan.wildcards <= self._slots:
                    return
        self._met[name] = None

    def _heard(self, prefix: bytes) -> None:
        """A message in the transaction."""
        self._messages += 1
        if prefix == FLUSH_PREFIX:
            self._flush += 1
        elif prefix == DDL_PREFIX:
            self._ddl = True
        elif prefix == LEAVE_PREFIX:
            self._leave = True


class Decoder(Collector):
    """For ``test_decoding``."""

    __slots__ = ()

    def again(self, data: memoryview, at: int) -> bool:
        if len(data) <= at or data[at] != _ROW_BYTE:
            return False
        head = bytes(data[at + 6 : at + _LONGEST_NAME])
        name = head[: head.find(b": ")]
        return self._more(name, data, at + 6 + len(name))

    def feed(self, data: bytes | memoryview, lsn: int) -> Commit | None:
        text = bytes(data)
        if text.startswith(b"table "):
            self._table(text)
            return None
        if text.startswith(b"BEGIN "):
            self._begin(_number(text[6:]))
            return None
        if text.startswith(b"COMMIT "):
            if _number(text[7:]) != self._xid:
                raise strange("COMMIT of another transaction")
            empty = not self._rows and not (self._flush == 1 and self._messages == 1)
            return self._end(lsn, empty=empty)
        if text.startswith(b"message: "):
            self._message(text)
            return None
        raise strange("an unknown kind of message")

    def _read(self, data: bytes | memoryview, at: int, wanted: AbstractSet[bytes]) -> Change | None:
        return read_change(data, at, wanted)

    def _table(self, text: bytes) -> None:
        names = names_of(text[6:])
        if len(names) > 1:
            self._truncated(names)
        else:
            self._changed(names[0], text, 6 + len(names[0]))

    def _message(self, text: bytes) -> None:
        # message: transactional: 1 prefix: distribcache.ddl, sz: 5 content:…
        kind, _, rest = text[9:].partition(b" prefix: ")
        if not kind.startswith(b"transactional: ") or b", sz: " not in rest:
            raise strange("a message in an unknown form")
        if kind != b"transactional: 1":
            return  # outside any transaction: ours, to have the log flushed, or somebody else's
        self._heard(rest.partition(b", sz: ")[0])


def names_of(text: bytes) -> list[bytes]:
    """The relations in ``schema.name: KIND: …`` or, for TRUNCATE, ``schema.a, schema.b: TRUNCATE: …``.

    Raises ProtocolError when the text has neither form.
    """
    names: list[bytes] = []
    at = 0
    while True:
        end = _identifier(text, at)
        if text[end : end + 1] != b".":
            raise strange("a relation without a schema")
        end = _identifier(text, end + 1)
        names.append(text[at:end])
        if text.startswith(b", ", end):
            at = end + 2
            continue
        if text.startswith(b": TRUNCATE:", end) or (len(names) == 1 and text.startswith(_ROW, end + 1)):
            return names
        raise strange("an unknown kind of change")


def _identifier(text: bytes, at: int) -> int:
    """Index just behind the identifier that starts at ``at``, quoted or plain."""
    if text[at : at + 1] == b'"':
        end = at
        while True:
            end = text.find(b'"', end + 1)
            if end < 0:
                raise strange("an open quote")
            if text[end + 1 : end + 2] != b'"':
                return end + 1
            end += 1
    end = at
    while end < len(text) and text[end] not in b".:, ":
        end += 1
    if end == at:
        raise strange("an empty name")
    return end


def _number(text: bytes) -> int:
    if not text.isdigit():
        raise strange("a transaction without an id")
    return int(text)

"""From facts of the stream, the probe and the catalogue to W, V and ``fresh_at``: the rules R1–R6 and R8, without IO.

Everything here is synchronous and takes times as arguments, so every race can be played step by step in a test. The
caller feeds what happened in the order in which it happened and calls ``publish`` at the end of each callback;
between two publications nothing else runs, so readers see slots, W, V and ``fresh_at`` move together, stored in that
order.

Where the rules leave room, this is the choice:

* *During a pending catalogue alarm* there are neither hits (``serving`` is false and ``fresh_at`` is 0) nor fills.
* *A changed catalogue* bumps the schema slot, every relation **and** every wildcard to norm(T), or to what was received
  by then if that is more. So an entry needs F as well as A to be that high: commits that were attributed by an outdated
  name map can not matter to anything that is still valid, not even when names were swapped several times.
* *Row slots* need neither: whoever has one has its wildcard too. What the rows of a transaction touch is decided while
  they are decoded, and looked at again at its commit (``watching``, rule 5).
* *A relation that the last re-read did not know* (``slot_of`` of a new oid) gets a slot that no entry satisfies until
  a re-read shows it: otherwise a table created and dropped between two equal fingerprints could leave an entry
  behind.
* *A new slot of a relation* starts where coverage began, or at the last commit whose names were not all known, if that
  is later: every other one made the slots of what it touched. That of a column set starts at everything received, also
  beyond a held W: nobody looked at rows by these columns before.
* *``fresh_at`` never passes the last look at the catalogue by more than two poll periods*: after an idle time the
  first hits wait for a poll as they wait for a probe.
* *An alarm whose transaction the last re-read already saw* is not raised: its effects are in the map, and the schema
  slot is at or above its position.
* *What came and went between two looks* leaves no trace in the fingerprint, but maybe an entry, filled by a memoised
  analysis before the alarm arrived. So a look that finds nothing new behind two transactions is not believed, if one of
  them certainly changed the catalogue, or if nothing was proved for half a poll period: the stream was late, and there
  was time. A transaction that the look has seen and that arrives behind it counts too. Else it is believed: ANALYZE and
  temporary tables look alike, and would end everything all the time.
* *After a change that is not settled, the same again one second later*, whether or not anything differs then: the
  server publishes a commit before its catalogue invalidations, so entries filled in between may come from outdated
  definitions. *Settled* is a proof that no commit is in that gap: a transaction gives the lock on its own id back only
  behind its invalidations, and none that the look's snapshot saw still had it afterwards. After an alarm of the proxy
  there is a second look too, which outdates nothing by itself.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from distribcache.catalog.generation import CatalogueView, Relations
from distribcache.coherence.alarms import Alarm, Alarms
from distribcache.coherence.decoding import Commit
from distribcache.coherence.freshness import Freshness
from distribcache.coherence.kept import PIECE, Kept, read_tag
from distribcache.coherence.ledger import ALARMS, FRESH_AT, NEVER, SCHEMA, Columns, Ledger, V, W, next_epoch
from distribcache.coherence.lsn import DEFAULT_SEGMENT, normalise
from distribcache.coherence.visibility import Snapshot, Visibility
from distribcache.coherence.watching import Watching

__all__ = ["SETTLE_NS", "Coverage"]

SETTLE_NS = 1_000_000_000
_PENDING = 256
_EMPTY = "empty_transaction"
# Alarms of ours without a transaction; the others come from the proxy and may have been raised too early.
_OWN = frozenset({"starting", "changed_poll"})


class Coverage:
    """What is known of one database under one epoch. ``on_fresh(fresh_at)`` is called when hits may look again."""

    def __init__(
        self,
        ledger: Ledger,
        counters: Freshness,
        *,
        full_poll_ns: int,
        quick_poll_ns: int,
        on_fresh: Callable[[int], None] = lambda _: None,
        workers: int = 0,
    ) -> None:
        self.ledger = ledger
        self.watching = Watching(ledger)
        self.counters = counters
        self.on_fresh = on_fresh
        self.on_move: Callable[[], None] | None = None
        """Called behind the stores: other processes are to be told."""
        self.on_heard: Callable[[], None] | None = None
        """Called when an alarm of a worker was found."""
        self.on_changed: Callable[[], None] | None = None
        """Called when the catalogue is found to be another one, before anything is filled under it."""
        self._heard = [0] * workers
        self.full_poll_ns = full_poll_ns
        self.quick_poll_ns = quick_poll_ns
        self.epoch = 0
        self.running = False
        self.segment = DEFAULT_SEGMENT
        self.end()

    # -- epochs, rule R8

    def end(self) -> None:
        """Coverage has, or may have, a hole: nothing of the present epoch is served again."""
        self.epoch = next_epoch()
        self.nonce = os.urandom(16)
        self.ledger.renew(self.epoch)
        self.running = False
        self.serving = False
        self.received = 0
        self.target = 0
        self.lost_at = 0
        self.confirmed = 0
        self.reached_at = 0
        self.highest_insert = 0
        self.full_at = 0
        self.quick_at = 0
        self.settle_at = 0
        self.settle_changed = False
        self.unexplained = 0
        self.relations = Relations.empty()
        self.watching.renew(self.relations)
        self.fingerprint: tuple[int, ...] = ()
        self.quick: tuple[int, ...] = ()
        self.seen: Snapshot | None = None
        self.visibility = Visibility()
        self.alarms = Alarms()
        self.pending: deque[tuple[int, int]] = deque()
        self.counters.epoch_changes += 1
        self._moved()

    def begin(self, start: int, segment: int = DEFAULT_SEGMENT) -> None:
        """The stream has started; it will carry every commit that ends behind ``start``."""
        self.segment = segment
        self.received = start
        self.ledger.open(start)
        self.running = True
        self.alarms.raise_("starting", start)

    def resume(self, kept: Kept, view: CatalogueView, segment: int = DEFAULT_SEGMENT) -> None:
        """The stream is about to start, and carries every commit behind ``kept.applied``, maybe earlier ones again.

        ``view``: the fingerprint is that of ``kept``. So no commit that it saw has changed anything, and none of those
        is an alarm: there may be very many, as each temporary table that was made meanwhile looks like one.
        """
        assert view.relations is not None
        self.segment = segment
        self.nonce = kept.nonce
        ledger = self.ledger
        for tag, value in kept.dense:
            oid, columns = read_tag(tag)
            slot = ledger.slot_of(oid, value) if columns is None else self.watching.register(oid, columns, value)
            if ledger.tags_of((slot,)) is not None:  # somebody may have asked for it already, as one never seen
                ledger.words[slot] = value
        ledger.resume(kept.applied, kept.schema, kept.overflow, kept.unpacked, PIECE)
        self.relations, self.seen = view.relations, view.snapshot
        self.watching.renew(view.relations)
        self.fingerprint, self.quick = kept.fingerprint, kept.quick
        self.target, self.lost_at = kept.target, kept.lost_at
        self.received = kept.applied
        self.running = True
        self.alarms.raise_("starting", kept.applied)

    # -- the stream, in its own order

    def commit(self, commit: Commit) -> None:
        """A committed transaction. Slots are bumped at once, W follows in ``publish``."""
        lsn, ledger, wildcards = commit.lsn, self.ledger, self.watching.touched
        touch, bump = ledger.touch, ledger.bump
        before = self.received
        tables = wild = 0
        lost = False
        by_name = self.relations.by_name
        for name in commit.names:
            oids = by_name.get(name)
            if oids is None:
                lost = True
            else:
                for oid in oids:
                    touch(oid, lsn)
                    tables += oid in ledger
        for slot in commit.slots:
            bump(slot, lsn)
            if slot < ledger.rows_at:
                wildcards[slot] += 1
                wild += 1
        died = self.counters.invalidations_by
        died["table"] += tables
        died["wildcard"] += wild
        died["row"] += len(commit.slots) - wild
        self.visibility.received(commit.xid, lsn)
        self.received = max(before, lsn)
        if lost:
            self.lost_at = self.received
        self.counters.commits += 1
        self.counters.rows += commit.rows
        known = self.seen is not None and self.seen.sees(commit.xid) and not self.unexplained
        if (commit.empty or commit.ddl or lost) and not known:
            reason = "ddl" if commit.ddl else _EMPTY if commit.empty else "unknown_relation"
            self._alarm(reason, min(before, lsn - 1), commit.xid)

    def position(self, lsn: int) -> None:
        """A keepalive: everything up to here was sent before it."""
        self.received = max(self.received, lsn)

    # -- the probe

    def observe(self, asked_at: int, received: int, snapshot: Snapshot, insert: int) -> bool:
        """An answer of the probe; ``received`` is what the stream had brought when the question was sent.

        False when the log went back: this epoch is over (R8).
        """
        reach = normalise(insert, self.segment)
        if reach < received or insert < self.highest_insert:
            return False
        self.highest_insert = insert
        self.visibility.observe(snapshot)
        pending = self.pending
        if pending and (pending[-1][1] == reach or len(pending) >= _PENDING):
            pending.pop()  # the same position at a later time; or one fewer chance to move, never a wrong one
        pending.append((asked_at, reach))
        self.counters.probes += 1
        return True

    # -- the catalogue (R6)

    def _alarm(self, reason: str, hold: int, xid: int = -1) -> int:
        self.serving = False
        self.ledger.words[FRESH_AT] = 0
        self.counters.alarms += 1
        self.counters.alarms_by[reason] += 1
        self.counters.last_alarm = reason
        number = self.alarms.raise_(reason, hold, xid)
        self._moved()
        return number

    def catalogue_alarm(self, reason: str) -> int:
        """A change that is already acknowledged or seen: no hit from here on until the catalogue was read again.

        The alarm's number.
        """
        return self._alarm(reason, self.ledger.words[W]) if self.running else 0

    def hear(self, reason: str = "ddl") -> bool:
        """Was an alarm raised by a worker since the last time? Then it is one here.

        Asked before ``fresh_at`` is stored: a worker counts its alarm before it reads the clock for its floor, so a
        time beyond that floor was read when the count was there already.
        """
        counts = self.ledger.words[ALARMS : ALARMS + len(self._heard)].tolist()
        if counts == self._heard:
            return False
        self._heard = counts
        self.catalogue_alarm(reason)
        if self.on_heard is not None:
            self.on_heard()
        self._moved()
        return True

    @property
    def heard(self) -> int:
        """How many alarms of workers were heard."""
        return sum(self._heard)

    def _moved(self) -> None:
        if self.on_move is not None:
            self.on_move()

    def wants_reread(self, now: int) -> bool:
        """Is there anything that a re-read begun now would settle?"""
        return self.running and (self.alarms.ready(self.visibility) or bool(self.settle_at and now >= self.settle_at))

    def reread(
        self, view: CatalogueView, *, mark: int, began_at: int, insert: int, settled: bool = False, own: int = 0,
        began_lsn: int = 0,
    ) -> None:  # fmt: skip
        """A re-read is complete; ``insert`` was asked after its snapshot, ``mark`` read before its first question.

        ``settled``: whatever it saw has also reached the server's own caches. ``own``: the alarm that it raised itself.
        ``began_lsn``: V before its first question; what was known of the catalogue and is not outdated by this look
        was still so there.
        """
        self.confirmed = max(self.confirmed, began_lsn)
        settling = bool(self.settle_at and began_at >= self.settle_at)
        changed = view.fingerprint != self.fingerprint
        answered = self.alarms.answer(view.snapshot, mark, own)
        self.counters.rereads += 1
        if view.relations is not None:
            self.relations = view.relations
            self.watching.renew(view.relations)
        outdated = self._came_and_went(answered, began_at) or changed or (settling and self.settle_changed)
        if outdated:
            # What was received meanwhile may lie behind the position, and was attributed by the outdated map too.
            self.target = max(normalise(insert, self.segment), self.received)
            self.ledger.bump_all(self.target)
            self.counters.invalidations_by["schema"] += 1
            self.counters.catalogue_changes += changed
            if self.on_changed is not None:
                self.on_changed()
            self.unexplained = 0
        if outdated and not settled:
            self.settle_at, self.settle_changed = began_at + SETTLE_NS, True
        elif outdated or settling:
            self.settle_at, self.settle_changed = 0, False
        if not self.settle_at and any(alarm.xid == -1 and alarm.reason not in _OWN for alarm in answered):
            self.settle_at = began_at + SETTLE_NS
        if self._heard and view.relations is not None:
            for oid in view.relations.oids:  # workers only know slots that they were told
                self.slot_of(oid)
        self.ledger.admit(self.relations.oids, max(self.received, self.target))
        self.fingerprint = view.fingerprint
        self.quick = view.quick
        self.seen = view.snapshot
        self.full_at = max(self.full_at, began_at)
        self.quick_at = max(self.quick_at, began_at)

    def _came_and_went(self, answered: list[Alarm], began_at: int) -> bool:
        """May something have been made and dropped again between this look and the last one?"""
        told = [alarm.reason for alarm in answered if alarm.xid != -1]
        late = 0 < self.reached_at < began_at - self.full_poll_ns // 2  # before the first proof nothing is filled
        if told:
            doubted = late or self.unexplained or any(reason != _EMPTY for reason in told)
            self.unexplained = self.unexplained + len(told) if doubted else 0
        return self.unexplained > 1

    def polled(self, quick: tuple[int, ...], began_at: int) -> None:
        """The quick poll: roles, memberships, settings. A difference is an alarm."""
        if quick != self.quick:
            self.catalogue_alarm("changed_poll")
        else:
            self.quick_at = max(self.quick_at, began_at)

    # -- what the others see

    def slot_of(self, oid: int) -> int:
        """The ledger slot of a relation; one that the last re-read did not know satisfies no entry yet."""
        return self.ledger.slot_of(oid, max(self.target, self.lost_at) if oid in self.relations.oids else NEVER)

    def watch(self, oid: int, columns: Columns) -> int:
        """The wildcard of a column set, registered now if it was not; 0 when there is no room for it.

        It starts at everything received. A transaction that is being decoded touches it at its commit.
        """
        initial = max(self.received, self.target) if oid in self.relations.oids else NEVER
        return self.watching.register(oid, columns, initial)

    def fill_point(self) -> int | None:
        """V, or None when nothing may be filled."""
        if not self.running or self.alarms:
            return None
        return self.ledger.words[V] or None

    def limit_at(self) -> int:
        """``fresh_at`` may not pass this: what the last looks at the catalogue vouch for."""
        return min(self.full_at + 2 * self.full_poll_ns, self.quick_at + 2 * self.quick_poll_ns)

    def publish(self) -> None:
        """Store W, V and ``fresh_at`` in this order, after the slots."""
        if self.running:
            self._publish()
            self._moved()

    def _publish(self) -> None:
        words = self.ledger.words
        limit = self.alarms.limit()
        applied = self.received if limit is None else min(self.received, limit)
        if applied > words[W]:
            words[W] = applied
        applied = words[W]
        words[V] = self.visibility.visible(applied)
        pending = self.pending
        while pending and pending[0][1] <= applied:
            self.reached_at = pending.popleft()[0]
        if self.reached_at > self.full_at:
            self.unexplained = 0  # whatever the last look has seen has arrived
        if limit is not None or applied < self.target or not self.full_at:
            self.serving = False
            words[FRESH_AT] = 0
            return
        self.serving = True
        fresh_at = min(self.reached_at, self.limit_at())
        if fresh_at > words[FRESH_AT] and not (self._heard and self.hear()):
            words[FRESH_AT] = fresh_at
            self.on_fresh(fresh_at)

    @property
    def applied(self) -> int:
        return self.ledger.words[W]

    @property
    def schema_lsn(self) -> int:
        return self.ledger.words[SCHEMA]

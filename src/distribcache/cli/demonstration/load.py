"""The process that runs the stories: ``python -m distribcache.cli.demonstration.load DIRECT CACHED SECONDS BOUND_NS``.

A process of its own, so that neither the cache nor the live view takes its turn while an answer is being timed. It
writes a report as a line of JSON a few times a second, and a final one when time is up, when it is told to end (SIGTERM
or the end of its standard input: rule 1 of ``children``) or when a story fails.
"""

from __future__ import annotations

import signal
import sys

import psycopg
from pydantic import TypeAdapter

from distribcache.cli.demonstration.figures import Report
from distribcache.cli.demonstration.stories import Stories
from distribcache.cli.demonstration.tether import tie
from distribcache.clock import now_ns

_REPORT_S = 0.2


def main() -> None:
    direct, cached, seconds, bound_ns = sys.argv[1:5]
    stories = Stories(direct, cached, int(bound_ns))
    signal.signal(signal.SIGTERM, lambda *_: stories.ended.set())
    tie()
    report = TypeAdapter(Report)

    def say(what: Report) -> None:
        # Bytes: the encoding of the terminal is no concern of this pipe.
        sys.stdout.buffer.write(report.dump_json(what) + b"\n")
        sys.stdout.buffer.flush()

    try:
        stories.start()
    except psycopg.Error as error:
        say(Report(error=str(error).strip(), final=True))
        return
    deadline = now_ns() + int(float(seconds) * 1e9)
    while not stories.ended.wait(min(_REPORT_S, max(0.0, (deadline - now_ns()) / 1e9))) and now_ns() < deadline:
        say(stories.report())
    stories.stop()
    say(stories.report(final=True))


if __name__ == "__main__":
    main()

"""``make suites``: foreign test suites in four passes. See ``outcomes.py`` for what each pass must give.

    python tests/suites/run.py                          everything that can be had here
    python tests/suites/run.py --suite postgres --pass A,B
    python tests/suites/run.py --suite asyncpg --tests test_prepare,test_copy
    python tests/suites/run.py --stand-in "python relay.py"   another proxy instead of distribcache

One server per suite, one database per pass (reads: per run), one proxy process per pass. What each run printed stays in
build/suites/results/<suite>/<pass><n>/, and the changed tests' differences in changed.diff beside it. Exit status: 0
when every pass gave what it must, 1 when one did not, 3 when a server or proxy did not start. A suite that cannot be
had on this machine is reported and does not fail the run, unless it was asked for by name.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psycopg
from benchmarks.servers import Program, distribcache, pg_bin, stats
from psycopg import sql
from rich.console import Console
from rich.table import Table
from tests.suites import drivers, reads, regress
from tests.suites.fetch import BUILD, ROOT, Unavailable
from tests.suites.outcomes import PASSES, Run, Verdict, differences, judge
from tests.suites.texts import texts_of

from distribcache.cli.postgres import Postgres

CACHE_OFF = "-c distribcache.cache=off"
MUTED = [sys.executable, str(ROOT / "tests" / "suites" / "muted_serve.py"), "serve"]
SUITES = (regress.NAME, reads.NAME, *drivers.DRIVERS)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    suite: str
    which: str
    runs: list[Run]
    verdict: Verdict


class Suite:
    """One suite on one server: runs passes and keeps what they left."""

    def __init__(self, name: str, tests: Sequence[str], stand_in: Sequence[str], bin_dir: Path) -> None:
        self.name = name
        driver = drivers.DRIVERS.get(name)
        self.unstable: Collection[str] = driver.unstable if driver is not None else regress.UNSTABLE
        self.results = BUILD / "results" / name
        self._tests = tests
        self._stand_in = stand_in
        self._bin = bin_dir
        self._texts: dict[str, bytes] = {}
        if driver is not None:
            driver.source()
            return
        self._prepared = regress.prepare(bin_dir)
        if name == reads.NAME:
            self._texts = texts_of(self._prepared / "input" / "sql", tests)

    def passes(self, wanted: Sequence[str], repeat: int, say: Console) -> Iterator[Row]:
        """Run the wanted passes on one server. Raises RuntimeError when a proxy does not start or dies."""
        base: Run | None = None
        more = reads.OPTIONS if self._texts else {}
        with Postgres(bin_dir=self._bin, options=regress.OPTIONS | {"max_connections": "300"} | more) as server:
            if self._texts:
                say.print(f"[dim]{self.name}: filling the database…")
                self._fill(server)
                every, self._texts = len(self._texts), reads.answered(self._texts, server.port, "regression")
                say.print(f"[dim]{self.name}: {len(self._texts)} of {every} texts are answered in it")
                repeat = max(repeat, 2)
            for which in wanted:
                shutil.rmtree(self.results / which, ignore_errors=True)
                for old in self.results.glob(f"{which}[0-9]"):
                    shutil.rmtree(old)
                times = {"A": repeat, "B": 1, "C": 2, "D": 1}[which]
                say.print(f"[dim]{self.name}: pass {which}, {times} run{'s' if times > 1 else ''}…")
                runs = self._pass(which, times, server)
                if which == "A" and self._texts:
                    self.unstable = {name for again in runs[1:] for name in differences(runs[0], again, ())}
                    say.print(f"[dim]  {len(self.unstable)} answers are not the same when asked again directly")
                verdict = judge(which, base, runs, self.unstable)
                if which == "A":
                    base = runs[0]
                elif base is not None:
                    self._explain(which, base, runs, verdict)
                yield Row(self.name, which, runs, verdict)

    def _fill(self, server: Postgres) -> None:
        """Run PostgreSQL's suite directly, for the database that it leaves behind."""
        with tempfile.TemporaryDirectory(prefix="distribcache-suite-") as folder:
            Path(folder).chmod(0o755)
            regress.run(
                self._prepared, self._bin, server.port, Path(folder) / "run", self.results / "filling",
                server_port=server.port, env={},
            )
        with psycopg.connect(server.conninfo("regression"), autocommit=True) as connection:
            for statement in reads.TIDY:
                connection.execute(statement.encode())

    def _reads(self, which: str, number: int, server: int, kept: Path, proxy: Program | None) -> Run:
        dbname = f"reads_{which.lower()}{number}"
        conninfo = f"host=127.0.0.1 port={server} user=postgres sslmode=disable dbname="
        with psycopg.connect(conninfo + "postgres", autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE regression").format(sql.Identifier(dbname)))
        return reads.run(
            server if proxy is None else proxy.port, conninfo + dbname, dbname, self._texts, kept,
            options=CACHE_OFF if which == "B" else "", cached=which in "CD" and not self._stand_in,
        )

    def _pass(self, which: str, times: int, server: Postgres) -> list[Run]:
        dbname = f"suite_{which.lower()}"
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(dbname)))
        for statement in drivers.DRIVERS[self.name].setup if self.name in drivers.DRIVERS else ():
            absent = contextlib.suppress(psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported)
            with absent, psycopg.connect(server.conninfo(dbname), autocommit=True) as connection:
                connection.execute(statement.encode())
        with tempfile.TemporaryDirectory(prefix="distribcache-suite-") as folder:
            work = Path(folder)
            work.chmod(0o755)
            if which == "A":
                return [self._run(which, n, server.port, dbname, work, {}, None) for n in range(times)]
            command = [*self._stand_in, "serve"] if self._stand_in else (MUTED if which == "D" else [])
            env = {"PGOPTIONS": CACHE_OFF} if which == "B" else {}
            # Twice off: not every driver reads PGOPTIONS.
            settings = {"DISTRIBCACHE_CACHE_ENABLED": "false"} if which == "B" else {}
            with distribcache(server.url(), work, command=command, env=settings) as proxy:
                try:
                    return [self._run(which, n, server.port, dbname, work, env, proxy) for n in range(times)]
                finally:
                    self.results.mkdir(parents=True, exist_ok=True)
                    self._keep_reasons(which, proxy)
                    (self.results / f"{which}-proxy.log").write_text(proxy.log())
                    if not proxy.alive:
                        raise RuntimeError(f"the proxy died: see {self.results}/{which}-proxy.log")

    def _run(
        self, which: str, number: int, server: int, dbname: str, work: Path, env: Mapping[str, str],
        proxy: Program | None,
    ) -> Run:
        port = server if proxy is None else proxy.port
        kept, folder = self.results / f"{which}{number}", work / f"run{number}"
        before = self._counters(proxy)
        if self._texts:
            run = self._reads(which, number, server, kept, proxy)
        elif self.name == regress.NAME:
            run = regress.run(
                self._prepared, self._bin, port, folder, kept, server_port=server, env=env, tests=self._tests
            )
        else:
            driver = drivers.DRIVERS[self.name]
            run = drivers.run(driver, port, dbname, folder, kept, env=env, tests=self._tests)
        after = self._counters(proxy)
        gained = {key: int(after.get(key, 0) - before.get(key, 0)) for key in ("hits_total", "misses_total")}
        return Run(run.outcomes, run.seconds, gained["hits_total"], gained["misses_total"], run.log)

    def _keep_reasons(self, which: str, proxy: Program) -> None:
        """Why what was not served was not: refusals, freshness and all counters, for whoever wants more hits."""
        if self._stand_in or not proxy.alive:
            return
        lines: list[str] = []
        with psycopg.connect(proxy.conninfo(), autocommit=True) as connection:
            for what in ("stats", "refusals", "freshness"):
                rows = connection.execute(f"SHOW distribcache.{what}".encode()).fetchall()
                lines += [f"-- {what}", *("\t".join(str(value) for value in row) for row in rows)]
        (self.results / f"{which}-reasons.txt").write_text("\n".join(lines) + "\n")

    def _counters(self, proxy: Program | None) -> dict[str, float]:
        return {} if proxy is None or self._stand_in else stats(proxy)

    def _explain(self, which: str, base: Run, runs: list[Run], verdict: Verdict) -> None:
        """changed.diff: per changed test the status in each run, and what it printed where the suite tells."""
        if not verdict.changed:
            return
        lines: list[str] = []
        for test in verdict.changed:
            for number, run in enumerate(runs):
                then, now = base.outcomes.get(test), run.outcomes.get(test)
                if then == now:
                    continue
                lines.append(f"=== {test} in {which}{number}: {then.status if then else 'absent'} in A, "
                             f"{now.status if now else 'absent'} now\n")
                here = [self.results / f"{part}/results/{test}.out" for part in ("A0", f"{which}{number}")]
                if all(path.exists() for path in here):
                    old, new = (path.read_text(errors="replace").splitlines(keepends=True) for path in here)
                    lines += difflib.unified_diff(old, new, "direct", f"{which}{number}")
        (self.results / f"{which}0" / "changed.diff").write_text("".join(lines))


def _each(facts: Iterable[int]) -> str:
    return " / ".join(str(fact) for fact in facts)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="foreign suites, four passes")
    for heading in ("suite", "pass", "tests", "failed", "hits", "seconds", "verdict"):
        table.add_column(heading, justify="right" if heading in ("tests", "failed", "hits", "seconds") else "left")
    for row in rows:
        mark = "[green]ok[/]" if row.verdict.ok else "[red]BROKEN[/]"
        few = ", ".join(row.verdict.changed[:4]) + (" …" if len(row.verdict.changed) > 4 else "")
        words = row.verdict.words + (f": {len(row.verdict.changed)} ({few})" if row.verdict.changed else "")
        table.add_row(
            row.suite, row.which, _each(len(r.outcomes) for r in row.runs),
            _each(len(r.failed) for r in row.runs), "" if row.which == "A" else _each(r.hits for r in row.runs),
            _each(round(r.seconds) for r in row.runs), f"{mark} {words}",
        )
    return table


def _words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="", help=f"one or more of {','.join(SUITES)} (default: all)")
    parser.add_argument("--pass", dest="passes", default=",".join(PASSES), help="one or more of A,B,C,D")
    parser.add_argument("--tests", default="", help="a subset: names (postgres, reads: files without .sql), by commas")
    parser.add_argument("--repeat", type=int, default=1, help="runs of pass A; 2 shows what is unstable by itself")
    parser.add_argument("--stand-in", default="", help="command of another proxy, given the same options as serve")
    asked = parser.parse_args(argv)
    say = Console(soft_wrap=True)
    bin_dir = pg_bin()
    if bin_dir is None:
        say.print("no PostgreSQL server is installed on this machine (Debian: apt install postgresql)")
        return 3
    wanted, status, rows = _words(asked.suite) or list(SUITES), 0, list[Row]()
    for name in wanted:
        if name not in SUITES:
            parser.error(f"no such suite: {name}")
        try:
            suite = Suite(name, _words(asked.tests), asked.stand_in.split(), bin_dir)
            for row in suite.passes(_words(asked.passes), asked.repeat, say):
                rows.append(row)
                say.print(f"[dim]  {'ok' if row.verdict.ok else 'BROKEN'}: {row.verdict.words}, "
                          f"{_each(round(run.seconds) for run in row.runs)} s"
                          + ("" if row.which == "A" else f", hits {_each(run.hits for run in row.runs)}"
                             f" of {_each(run.hits + run.misses for run in row.runs)} lookups"))
        except Unavailable as reason:
            say.print(f"[yellow]{name}: not to be had on this machine[/]: {reason}", highlight=False)
            status = max(status, 1 if asked.suite else 0)
        except RuntimeError as reason:
            say.print(f"[red]{name}[/]: {reason}", highlight=False)
            status = 3
    if rows:
        Console(width=160).print(_table(rows))
        say.print(f"[dim]details: {BUILD.relative_to(ROOT)}/results/<suite>/<pass><n>/")
    if any(not row.verdict.ok for row in rows):
        status = max(status, 1)
    return status


if __name__ == "__main__":
    # A polite end by whoever started us must stop our servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())

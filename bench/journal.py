"""What one more row costs: the journal's append against SQLite and against DuckDB, alone and in a crowd.

    python bench/journal.py

Every row is written as a command would: open, write, make durable, close, in processes of their own. SQLite
runs in WAL mode with synchronous=FULL; DuckDB, which one process at a time may open, is retried until it
opens or 20 seconds have passed. Afterwards the rows that are there are counted against those acknowledged.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CROWDS = (1, 8, 32)
ROWS = {"journal": {1: 200, 8: 40, 32: 12}, "sqlite": {1: 200, 8: 40, 32: 12}, "duckdb": {1: 20, 8: 6, 32: 2}}
PATIENCE = 20.0
POLL = 0.01
TITLES = {"journal": "journal, one write and fsync", "sqlite": "SQLite, WAL, synchronous=FULL",
          "duckdb": "DuckDB, connect with retry"}


def main():
    """Measure every way in every crowd, print the table."""
    rows = [measure(way, crowd) for crowd in CROWDS for way in ROWS]
    show("Recording one exchange", "python bench/journal.py",
         ("processes at once", "way", "median", "p95", "slowest", "rows written", "given up", "lost"), rows,
         "Each row is an exchange of about 1.5 kB, durable before the clock stops. A row is given up when "
         f"its database could not be used for {PATIENCE:g} s.")


def measure(way, crowd):
    """One way with so many processes: a row of the table."""
    count = ROWS[way][crowd]
    with tempfile.TemporaryDirectory(prefix="swarmctl-bench-") as folder:
        WAYS[way](Path(folder), "first", 0)
        children = [subprocess.Popen([sys.executable, __file__, way, folder, str(me), str(count)], text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE) for me in range(crowd)]
        for child in children:
            child.stdout.readline()  # it has imported everything
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        found = [json.loads(child.communicate(timeout=600)[0]) for child in children]
        there = COUNTS[way](Path(folder)) - 1
    seconds = sorted(second for one in found for second in one["seconds"])
    given_up = sum(one["given_up"] for one in found)
    return (crowd, TITLES[way], milli(statistics.median(seconds)), milli(seconds[int(len(seconds) * 0.95)]),
            milli(seconds[-1]), len(seconds), given_up, len(seconds) - there)


def child(way, folder, me, count):
    """Write rows when told to, and print what each took."""
    seconds, given_up = [], 0
    write = WAYS[way]
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(count):
        started = time.perf_counter()
        if write(folder, me, number):
            seconds.append(time.perf_counter() - started)
        else:
            given_up += 1
    print(json.dumps({"seconds": seconds, "given_up": given_up}))


def by_journal(folder, me, number):
    from swarmctl.ledger.journal import append

    append(folder, row(me, number))
    return True


def by_sqlite(folder, me, number):
    connection = sqlite3.connect(folder / "rows.sqlite", timeout=PATIENCE)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, at TEXT, record TEXT)")
        made = row(me, number)
        connection.execute("INSERT INTO rows VALUES (?, ?, ?)", (made["id"], made["at"], json.dumps(made)))
        connection.commit()
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


def by_duckdb(folder, me, number):
    import duckdb

    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection = duckdb.connect(str(folder / "rows.duckdb"))
            break
        except duckdb.IOException:
            if time.monotonic() > until:
                return False
            time.sleep(POLL)
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, at_utc TEXT, record TEXT)")
        made = row(me, number)
        connection.execute("INSERT INTO rows VALUES (?, ?, ?)", (made["id"], made["at"], json.dumps(made)))
    except duckdb.Error:  # another process opened or closed the file in between
        return False
    finally:
        connection.close()
    return True


def row(me, number):
    from recorded import exchange

    return {**exchange(number, answer="word " * 100).to_record(), "id": f"{me}-{number}"}


def in_journal(folder):
    from swarmctl.ledger.journal import read

    return sum(1 for _ in read(folder))


def in_sqlite(folder):
    connection = sqlite3.connect(folder / "rows.sqlite")
    (count,) = connection.execute("SELECT count(*) FROM rows").fetchone()
    connection.close()
    return count


def in_duckdb(folder):
    import duckdb

    return duckdb.connect(str(folder / "rows.duckdb"), read_only=True).execute(
        "SELECT count(*) FROM rows").fetchone()[0]


def milli(seconds):
    """Seconds as a cell, to a tenth of a millisecond where that says something."""
    return f"{seconds * 1000:,.1f} ms" if seconds < 0.1 else f"{seconds * 1000:,.0f} ms"


WAYS = {"journal": by_journal, "sqlite": by_sqlite, "duckdb": by_duckdb}
COUNTS = {"journal": in_journal, "sqlite": in_sqlite, "duckdb": in_duckdb}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()

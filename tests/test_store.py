"""The ledger: always what the journal says, however often and by however many it is made."""

from __future__ import annotations

import fcntl
import random
import stat
import subprocess
import sys
from dataclasses import replace

import duckdb
import pytest
from recorded import comparison, exchange, identity, paths_under, rating

from swarmctl.errors import LedgerError, LockBusy
from swarmctl.exchange import Message, ToolCall
from swarmctl.ledger import journal, store
from swarmctl.ledger.migrations import MIGRATIONS, Migration, migrate
from swarmctl.ledger.rows import COLUMNS

MONTH = "2026-11.jsonl"
SYNC = ("import sys; from swarmctl.paths import Paths; from swarmctl.ledger.store import sync\n"
        "print(sync(Paths.from_environ({'SWARMCTL_HOME': sys.argv[1], 'HOME': '/'})).records)")

# Forks a child that syncs, kills it at a random moment, and lets the next child go on from there.
KILLED_SYNCS = """
import os, random, signal, sys, time
import duckdb
from swarmctl.ledger import journal, store
from swarmctl.paths import Paths
paths = Paths.from_environ({"SWARMCTL_HOME": sys.argv[1], "HOME": "/"})
killed = 0
for number in range(15):
    journal.append(paths.journal, {"kind": "decision", "id": str(number), "at": "2026-11-23T10:00:00Z"})
    pid = os.fork()
    if pid == 0:
        try:
            store.sync(paths)
            time.sleep(60)
        finally:
            os._exit(1)
    time.sleep(random.uniform(0.0, 0.12))
    os.kill(pid, signal.SIGKILL)
    killed += os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
print(killed)
"""


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def test_a_file_in_the_journals_place_is_named(paths):
    journal.append(paths.journal, exchange().to_record())
    store.sync(paths)
    for path in paths.journal.iterdir():
        path.unlink()
    paths.journal.rmdir()
    paths.journal.write_text("")
    with pytest.raises(LedgerError, match="Not a directory"):
        store.sync(paths)


def contents(paths):
    with store.open_ledger(paths, read_only=True) as connection:
        return {table: sorted(map(repr, connection.execute(f"SELECT * FROM {table}").fetchall()))
                for table in (*COLUMNS, "journal_marks", "scores", "approval", "answers")}


def ask(paths, statement):
    with store.open_ledger(paths, read_only=True) as connection:
        return connection.execute(statement).fetchall()


def fill(paths, count=30, start=0):
    for moment in range(start, start + count):
        row = exchange(moment, model=f"m{moment % 3}", host=f"h{moment % 2}")
        journal.append(paths.journal, row.to_record())
        if moment % 2:
            rated = rating(10_000 + moment, row, score=(moment % 5 - 2) / 2)
            journal.append(paths.journal, rated.to_record())
        if moment % 7 == 0:
            other = exchange(moment + 1, model="m9")
            journal.append(paths.journal, comparison(20_000 + moment, row, other).to_record())


def test_every_field_of_an_exchange_is_a_column(paths):
    journal.append(paths.journal, exchange(5, parent="p", error="cut").to_record())
    assert store.sync(paths) == store.Synced(records=1, torn=0)
    with store.open_ledger(paths, read_only=True) as connection:
        found = connection.execute("SELECT * FROM exchanges")
        row = dict(zip([column[0] for column in found.description], found.fetchone(), strict=True))
    assert str(row.pop("at_utc")) == "2026-11-18 10:00:05"
    assert row.pop("route").startswith('{"reason":"cheapest"')
    assert row == {
        "id": identity(5), "conversation": identity(5), "parent": "p", "terminal": "pts-1", "via": "ask",
        "category": "routine", "host": "spinoza", "runtime": "llamacpp", "model": "tiny-small",
        "digest": "d" * 64, "template": "t" * 64, "question": "what is two and two?", "answer": "four",
        "finish": "stop", "error": "cut", "params": '{"max_tokens":64}', "max_tokens": 64,
        "temperature": None, "seed": None, "prompt_tokens": 12, "cached_tokens": None, "prompt_seconds": 0.05,
        "completion_tokens": 4, "decode_seconds": 0.1, "load_seconds": None, "first_token_seconds": 0.06,
        "total_seconds": 0.2, "queue_seconds": None, "failovers": 1, "tool_calls": None, "more": None}
    assert ask(paths, "SELECT position, role, content FROM messages ORDER BY position") == [
        (0, "system", "be brief"), (1, "user", "what is two and two?")]
    assert ask(paths, "SELECT host, model, error, tokens FROM attempts") == [
        ("calisota", "tiny-large", "connection refused", 0)]


def test_tool_calls_and_their_results_have_columns(paths):
    call = ToolCall("c1", "weather", '{"city": "Paris"}')
    said = (Message("user", "hi"), Message("assistant", "", (call,)),
            Message("tool", "sun", (), "c1", "weather"))
    journal.append(paths.journal, replace(exchange(1), messages=said, tool_calls=(call,)).to_record())
    store.sync(paths)
    assert ask(paths, "SELECT tool_calls->0->>'name' FROM answers") == [("weather",)]
    assert ask(paths, "SELECT role, tool_calls->0->>'arguments', tool_call_id, name FROM messages "
                      "ORDER BY position") == [("user", None, None, None),
                                               ("assistant", '{"city": "Paris"}', None, None),
                                               ("tool", None, "c1", "weather")]


def test_a_ledger_from_before_there_were_tools_gains_their_columns_and_keeps_its_rows(paths):
    old = exchange(1).to_record()
    del old["tool_calls"]
    journal.append(paths.journal, old)
    connection = duckdb.connect(str(paths.ledger))
    migrate(connection, MIGRATIONS[:3])
    connection.execute("INSERT INTO exchanges (id, model) VALUES ('before', 'm')")
    connection.close()
    store.sync(paths)
    assert ask(paths, "SELECT id, tool_calls FROM answers ORDER BY id") == [(identity(1), None),
                                                                            ("before", None)]


def test_a_second_sync_takes_in_nothing_and_changes_nothing(paths):
    fill(paths)
    store.sync(paths)
    before = contents(paths)
    assert store.sync(paths) == store.Synced(0, 0)
    assert contents(paths) == before


def test_a_sync_takes_in_what_is_new_and_nothing_else(paths):
    fill(paths, 4)
    store.sync(paths)
    journal.append(paths.journal, exchange(100).to_record())
    journal.append(paths.journal, exchange(101, at="2026-12-01T00:00:00.000Z").to_record())
    assert store.sync(paths).records == 2


def test_a_rebuilt_ledger_is_the_synced_one(paths):
    for part in range(5):
        fill(paths, 10, part * 10)
        store.sync(paths)
    before = contents(paths)
    synced = store.rebuild(paths)
    assert contents(paths) == before
    assert synced.records == sum(1 for _ in journal.read(paths.journal))
    assert sorted(path.name for path in paths.data.iterdir()) == ["journal", "ledger.duckdb", "ledger.lock"]


def test_a_record_that_stands_twice_counts_once(paths):
    row = exchange(1).to_record()
    for _ in range(3):
        journal.append(paths.journal, row)
    store.sync(paths)
    journal.append(paths.journal, row)
    store.sync(paths)
    assert ask(paths, "SELECT (SELECT count(*) FROM exchanges), (SELECT count(*) FROM messages)") == [(1, 2)]


def test_a_torn_tail_is_left_until_it_is_whole(paths):
    journal.append(paths.journal, exchange(1).to_record())
    whole = b"\n" + journal.encode(exchange(2).to_record()) + b"\n"
    with (paths.journal / MONTH).open("ab", buffering=0) as file:
        file.write(whole[:50])
        assert store.sync(paths) == store.Synced(1, 0)
        file.write(whole[50:])
    assert store.sync(paths) == store.Synced(1, 0)
    assert ask(paths, "SELECT id FROM exchanges ORDER BY id") == [(identity(1),), (identity(2),)]


def test_a_torn_tail_that_a_later_record_follows_is_torn_for_good(paths):
    journal.append(paths.journal, exchange(1).to_record())
    with (paths.journal / MONTH).open("ab", buffering=0) as file:
        file.write(b'\n{"kind": "exch')
        store.sync(paths)
    journal.append(paths.journal, exchange(2).to_record())
    assert store.sync(paths) == store.Synced(1, 1)
    assert store.sync(paths) == store.Synced(0, 0)
    assert ask(paths, "SELECT file, line, reason FROM torn") == [(MONTH, 4, "not JSON")]
    assert journal.read(paths.journal)


def test_processes_that_sync_at_once_take_in_each_record_once(paths, tmp_path):
    fill(paths, 300)
    command = [sys.executable, "-c", SYNC, str(tmp_path)]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    taken = [int(one.communicate(timeout=60)[0]) for one in several]
    assert sum(taken) == max(taken) == sum(1 for _ in journal.read(paths.journal))
    before = contents(paths)
    store.rebuild(paths)
    assert contents(paths) == before


def test_a_sync_amid_writers_misses_nothing(paths, tmp_path):
    code = ("import sys; from pathlib import Path; from swarmctl.ledger.journal import append\n"
            "for n in range(100):\n"
            "    row = {'kind': 'decision', 'id': sys.argv[2] + str(n), 'at': '2026-11-23T10:00:00Z'}\n"
            "    append(Path(sys.argv[1]), {**row, 'text': 'x' * 500 * n})")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(paths.journal), name]) for name in "abc"]
    while any(writer.poll() is None for writer in writers):
        store.sync(paths)
    store.sync(paths)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert ask(paths, "SELECT count(*), (SELECT count(*) FROM torn) FROM decisions") == [(300, 0)]


def test_a_sync_that_is_killed_anywhere_is_completed_by_the_next(paths, tmp_path):
    fill(paths, 60)
    done = subprocess.run([sys.executable, "-c", KILLED_SYNCS, str(tmp_path)], timeout=120, check=True,
                          capture_output=True, text=True)
    assert int(done.stdout) == 15
    store.sync(paths)
    before = contents(paths)
    store.rebuild(paths)
    assert contents(paths) == before


def test_readers_share_the_ledger_and_a_writer_waits_with_a_bound(paths):
    fill(paths, 2)
    store.sync(paths)
    with store.open_ledger(paths, read_only=True), store.open_ledger(paths, read_only=True) as second:
        assert second.execute("SELECT count(*) FROM exchanges").fetchall() == [(2,)]
        with pytest.raises(LockBusy) as caught:
            store.sync(paths, wait=0.1)
    assert "log sql" in caught.value.hint
    assert store.sync(paths).records == 0


def test_the_lock_is_let_go_when_a_block_fails(paths):
    with pytest.raises(ZeroDivisionError), store.open_ledger(paths):
        raise ZeroDivisionError
    with (paths.data / "ledger.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_older_ledger_is_brought_up_and_reads_again_what_it_had_no_tables_for(paths):
    fill(paths, 8)
    paths.data.mkdir(exist_ok=True)
    connection = duckdb.connect(str(paths.ledger))
    assert migrate(connection, MIGRATIONS[:1]) == (1,)
    size = (paths.journal / MONTH).stat().st_size
    connection.execute("INSERT INTO journal_marks VALUES (?, ?, 100)", [MONTH, size])
    connection.close()
    store.sync(paths)
    assert ask(paths, "SELECT number FROM migrations ORDER BY 1") == [(step.number,) for step in MIGRATIONS]
    before = contents(paths)
    assert len(before["comparisons"]) == 2
    store.rebuild(paths)
    assert contents(paths) == before


def test_a_ledger_of_a_newer_swarmctl_is_refused_and_can_be_made_anew(paths):
    fill(paths, 2)
    store.sync(paths)
    with store.open_ledger(paths) as connection:
        connection.execute("INSERT INTO migrations VALUES (99, 'from the future', NULL)")
    with pytest.raises(LedgerError, match="newer swarmctl") as caught:
        store.sync(paths)
    assert "swarmctl log rebuild" in caught.value.hint
    store.rebuild(paths)
    assert store.sync(paths).records == 0


def test_a_failing_migration_leaves_no_half_of_itself(paths):
    paths.data.mkdir(parents=True)
    connection = duckdb.connect(str(paths.ledger))
    broken = Migration(1, "broken", "CREATE TABLE half (x BIGINT); SELECT nonsense FROM nowhere;")
    with pytest.raises(duckdb.Error):
        migrate(connection, (broken,))
    assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("migrations",)]
    assert migrate(connection) == tuple(step.number for step in MIGRATIONS)
    connection.close()


def test_numbers_of_migrations_rise_by_one(paths):
    assert [step.number for step in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_the_schema_has_the_columns_that_rows_fill(paths):
    store.sync(paths)
    for table, columns in COLUMNS.items():
        described = ask(paths, f"SELECT column_name, column_type FROM (DESCRIBE {table})")
        assert dict(described) == dict(columns), table


@pytest.mark.parametrize("damage", ["garbage", "bits", "cut", "empty"])
def test_a_damaged_ledger_is_a_clear_error_and_rebuilding_heals_it(paths, damage):
    fill(paths, 40)
    store.sync(paths)
    before = contents(paths)
    hurt(paths.ledger, damage)
    with pytest.raises(LedgerError) as caught:
        store.sync(paths)
    assert str(paths.ledger) in caught.value.message
    assert "swarmctl log rebuild" in caught.value.hint
    store.rebuild(paths)
    assert contents(paths) == before


def hurt(ledger, damage):
    raw, chance = bytearray(ledger.read_bytes()), random.Random(7)
    if damage == "bits":
        for place in range(4096, len(raw), 97):
            raw[place] = chance.randrange(256)
    left = {"garbage": b"no database " * 4000, "bits": raw, "cut": raw[:9000], "empty": b""}
    ledger.write_bytes(left[damage])


def test_a_missing_ledger_is_made_again(paths):
    fill(paths, 8)
    store.sync(paths)
    before = contents(paths)
    paths.ledger.unlink()
    store.sync(paths)
    assert contents(paths) == before


def test_rebuilding_drops_the_write_ahead_log_of_the_file_it_replaces(paths):
    fill(paths, 4)
    store.sync(paths)
    wal = paths.data / "ledger.duckdb.wal"
    wal.write_bytes(b"of a process that died")
    store.rebuild(paths)
    assert not wal.exists()
    assert ask(paths, "SELECT count(*) FROM exchanges") == [(4,)]


@pytest.mark.parametrize("change", ["shorter", "gone", "shifted"])
def test_a_journal_that_was_edited_is_read_anew(paths, change):
    fill(paths, 12)
    store.sync(paths)
    file = paths.journal / MONTH
    lines = file.read_bytes().split(b"\n")
    if change == "gone":
        file.unlink()
    elif change == "shorter":
        file.write_bytes(b"\n".join(lines[:8]) + b"\n")
    else:
        file.write_bytes(b"\n".join(lines[2:]) + b"\n" + b"x" * 5000 + b"\n")
    store.sync(paths)
    before = contents(paths)
    store.rebuild(paths)
    assert contents(paths)["exchanges"] == before["exchanges"]
    assert len(before["exchanges"]) < 12


def test_records_that_are_not_what_their_kind_says_are_torn_with_a_reason(paths):
    rows = ({"kind": "exchange"}, {"kind": "exchange", "model": "m", "messages": "hi"},
            {"kind": "rating", "exchange": "e", "model": "m", "category": "c", "score": 7},
            {"kind": "comparison", "a": "x"})
    for number, row in enumerate(rows):
        journal.append(paths.journal, {"id": str(number), "at": "2026-11-23T10:00:00Z", **row})
    assert store.sync(paths) == store.Synced(0, 4)
    reasons = [reason for (reason,) in ask(paths, "SELECT reason FROM torn ORDER BY line")]
    assert [reason.split(" without ")[0] for reason in reasons] == [
        "an exchange", "an exchange", "a rating", "a comparison"]


def test_fields_and_kinds_of_a_newer_swarmctl_are_kept(paths):
    more = {"mood": {"sunny": True}, "timings": {"blink": 3}}
    journal.append(paths.journal, exchange(1).to_record() | more)
    promotion = {"kind": "promotion", "id": "p", "at": "2026-11-23T12:00:00+02:00", "tag": 7}
    journal.append(paths.journal, promotion)
    store.sync(paths)
    assert ask(paths, "SELECT more FROM exchanges") == [('{"mood":{"sunny":true},"timings":{"blink":3}}',)]
    assert ask(paths, "SELECT kind, at_utc::VARCHAR, record->>'tag' FROM decisions") == [
        ("promotion", "2026-11-23 10:00:00", "7")]


def test_values_of_a_wrong_type_become_null_and_odd_text_is_kept(paths):
    row = exchange(1, question="\udcff \x00 漢", answer="\x1b]0;x\x07").to_record()
    row |= {"timings": {"prompt_tokens": "many", "total_seconds": 1e400}, "at": "2026-11-99T00:00:00Z"}
    journal.append(paths.journal, row)
    store.sync(paths)
    assert ask(paths, "SELECT question, answer, prompt_tokens, total_seconds, at_utc FROM exchanges") == [
        ("\\udcff \x00 漢", "\x1b]0;x\x07", None, None, None)]


def test_the_ledger_is_for_its_owner_alone(paths):
    fill(paths, 1)
    store.sync(paths)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths.data.iterdir()} == {
        "journal": 0o700, "ledger.duckdb": 0o600, "ledger.lock": 0o600}


def test_current_ratings_are_the_latest_that_were_not_taken_back(paths):
    row = exchange(1)
    first, second = rating(10, row, score=1.0), rating(11, row, score=-1.0)
    for one in (row, first, second, rating(12, row, score=-1.0, undoes=second.id)):
        journal.append(paths.journal, one.to_record())
    store.sync(paths)
    assert ask(paths, "SELECT id, score FROM current_ratings") == [(first.id, 1.0)]
    assert ask(paths, "SELECT model, category, host, ratings, approval FROM approval") == [
        ("tiny-small", "routine", "spinoza", 1, 1.0)]

"""The journal: nothing acknowledged is lost, nothing torn harms a neighbour, nobody waits for another."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import exchange, identity, rating

from swarmctl.errors import LedgerError, UsageError
from swarmctl.exchange import Message, ToolCall
from swarmctl.ledger import journal
from swarmctl.ledger.lookup import (
    conversation_messages,
    find,
    find_exchange,
    last_messages,
    lines_backwards,
    standing_rating,
)

MONTH = "2026-11.jsonl"

WRITER = """
import sys, time
from pathlib import Path
from swarmctl.ledger.journal import append
folder, me, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sys.stdin.read()
slowest = 0.0
for number in range(count):
    kind = "rating" if number % 2 else "exchange"
    started = time.monotonic()
    append(folder, {"v": 1, "kind": kind, "id": f"{me}-{number}", "at": "2026-11-23T10:00:00Z",
                    "answer": "word " * (50 * number)})
    slowest = max(slowest, time.monotonic() - started)
assert not {"duckdb", "fabric", "rich", "typer", "dataclasses_json"} & set(sys.modules)
print(slowest)
"""

# Forks children that write without end, and kills each with SIGKILL at a random moment. Prints what was
# acknowledged: an id reaches the pipe only after `append` has returned.
KILLER = """
import json, os, random, select, signal, sys, time
from pathlib import Path
from swarmctl.ledger.journal import append

folder, kills, at_once, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
SIZES = (10, 2_000, 60_000, 1_000_000, 4_000_000)

def child(name, end, seed):
    mine, number = random.Random(seed), 0
    while True:
        record = {"kind": "exchange", "id": f"{name}-{number}", "at": "2026-11-23T10:00:00Z",
                  "answer": "x" * mine.choice(SIZES)}
        append(folder, record)
        os.write(end, f"{name}-{number}\\n".encode())
        number += 1

acknowledged = []
for round in range(kills // at_once):
    running = []
    for place in range(at_once):
        near, far = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(f"{round}.{place}", far, chance.random())
            finally:
                os._exit(1)
        os.close(far)
        running.append((pid, near, chance.uniform(0.0, 0.06)))
    started = time.monotonic()
    for pid, near, moment in sorted(running, key=lambda one: one[2]):
        time.sleep(max(0.0, started + moment - time.monotonic()))
        os.kill(pid, signal.SIGKILL)
    for pid, near, _ in running:
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        with os.fdopen(near) as pipe:
            acknowledged += [line.rstrip("\\n") for line in pipe if line.endswith("\\n")]
print(json.dumps(acknowledged))
"""


@pytest.mark.parametrize(("levels", "read"), [(190, True), (250, False), (900, False), (100_000, False)])
def test_a_record_is_read_by_all_readers_or_by_none(levels, read):
    """Which nesting Python bears depends on who asks: one that `parse` took stopped the ledger."""
    deep = '{"a":' * levels + "1" + "}" * levels
    found, why = journal.parse(f'{{"kind":"exchange","id":"x","at":"y","params":{deep}}}'.encode())
    assert (found is not None) == read
    assert read or why == "nested too deeply"


def test_a_record_reads_back_as_it_was_written(tmp_path):
    row = exchange(question="naïve 漢字 \u2028 \x00 \x1b[31m\nnext line").to_record()
    journal.append(tmp_path / "journal", row)
    assert list(journal.read(tmp_path / "journal")) == [json.loads(json.dumps(row))]


def test_records_are_filed_by_the_month_of_their_own_time_and_read_in_order(tmp_path):
    for day, name in (("2026-12-01", "c"), ("2026-11-30", "a"), ("2026-11-30", "b")):
        journal.append(tmp_path, {"kind": "decision", "id": name, "at": f"{day}T23:59:59Z"})
    assert [path.name for path in journal.files(tmp_path)] == ["2026-11.jsonl", "2026-12.jsonl"]
    assert [record["id"] for record in journal.read(tmp_path)] == ["a", "b", "c"]


def test_the_journal_is_for_its_owner_alone(tmp_path):
    folder = tmp_path / "data" / "journal"
    before = os.umask(0)
    try:
        journal.append(folder, exchange().to_record())
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / MONTH).stat().st_mode) == 0o600


def test_append_returns_after_the_file_and_a_new_folder_entry_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd)))
    folder = tmp_path / "journal"
    journal.append(folder, exchange(1).to_record())
    file = folder / MONTH
    assert synced == [path.stat().st_ino for path in (tmp_path, file, folder)]
    synced.clear()
    journal.append(folder, exchange(2).to_record())
    assert synced == [file.stat().st_ino]


def test_text_that_is_no_unicode_is_stored_without_loss(tmp_path):
    question = os.fsdecode(b"caf\xe9 \xff")
    journal.append(tmp_path, exchange(question=question).to_record())
    (row,) = journal.read(tmp_path)
    assert os.fsencode(row["messages"][1]["content"]) == b"caf\xe9 \xff"


def test_numbers_that_json_lacks_become_null(tmp_path):
    journal.append(tmp_path, {"kind": "decision", "id": "a", "at": "2026-11-23T10:00:00Z",
                              "speed": float("inf"), "deep": [{"x": float("nan"), "y": 1.5}]})
    (row,) = journal.read(tmp_path)
    assert (row["speed"], row["deep"]) == (None, [{"x": None, "y": 1.5}])
    assert b"NaN" not in (tmp_path / MONTH).read_bytes()


@pytest.mark.parametrize("at", [None, "", "yesterday", "2026-11", "../../2026-11-23T"])
def test_a_record_without_a_usable_time_is_refused(tmp_path, at):
    with pytest.raises(LedgerError, match="no month"):
        journal.append(tmp_path, {"kind": "decision", "id": "a", "at": at})
    assert list(tmp_path.iterdir()) == []


def test_a_record_past_the_limit_is_refused_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LONGEST", 4096)
    with pytest.raises(LedgerError, match="too large"):
        journal.append(tmp_path, exchange(answer="x" * 5000).to_record())
    assert list(journal.read(tmp_path)) == []


def test_a_folder_that_cannot_be_one_is_a_clear_error(tmp_path):
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(LedgerError, match="cannot record in") as caught:
        journal.append(tmp_path / "journal", exchange().to_record())
    assert str(tmp_path) in str(caught.value)


def test_a_torn_line_costs_only_itself(tmp_path):
    journal.append(tmp_path, exchange(1).to_record())
    with (tmp_path / MONTH).open("ab") as file:
        file.write(b'\n{"kind": "exchange", "id": "half')
    journal.append(tmp_path, exchange(2).to_record())
    torn = []
    assert [row["id"] for row in journal.read(tmp_path, torn.append)] == [identity(1), identity(2)]
    assert [(line.file, line.number, line.reason) for line in torn] == [(MONTH, 4, "not JSON")]


def test_a_last_line_without_its_newline_is_a_tail_and_no_record_yet(tmp_path):
    journal.append(tmp_path, exchange(1).to_record())
    with (tmp_path / MONTH).open("ab") as file:
        file.write(b"\n" + journal.encode(exchange(2).to_record()))
    torn = []
    assert [row["id"] for row in journal.read(tmp_path, torn.append)] == [identity(1)]
    assert [line.tail for line in torn] == [True]
    journal.append(tmp_path, exchange(3).to_record())
    assert [row["id"] for row in journal.read(tmp_path)] == [identity(1), identity(2), identity(3)]


@pytest.mark.parametrize(("line", "reason"), [
    (b"\xff\xfe{}", "not UTF-8"), (b"\x00" * 40, "not JSON"), (b'{"kind": "exchange"', "not JSON"),
    (b"[1, 2]", "not a JSON object"), (b'"x"', "not a JSON object"), (b"{}", "without kind"),
    (b'{"kind": 1, "id": "a", "at": "b"}', "without kind"),
    (b"[" * 100_000, "nested"), (b"x" * 5000, "longer"),
])
def test_what_is_no_record_is_reported_with_its_place_and_reason(tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr(journal, "LONGEST", 4096 if line.startswith(b"x") else journal.LONGEST)
    good = journal.encode(exchange(1).to_record())
    (tmp_path / MONTH).write_bytes(b"\n" + good + b"\n" + line + b"\n\n" + good + b"\n")
    torn = []
    assert len(list(journal.read(tmp_path, torn.append))) == 2
    assert [(bad.number, bad.offset) for bad in torn] == [(3, len(good) + 2)]
    assert reason in torn[0].reason


def test_reading_goes_on_from_an_offset_with_the_right_line_numbers(tmp_path):
    for moment in range(4):
        journal.append(tmp_path, exchange(moment).to_record())
    whole = list(journal.scan(tmp_path / MONTH))
    middle = whole[1]
    assert list(journal.scan(tmp_path / MONTH, middle.end, middle.number)) == whole[2:]


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6)
LINES = st.one_of(
    st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b" ")),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.integers(0, 5).map(lambda moment: journal.encode(exchange(moment).to_record())),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=12), ended=st.booleans())
def test_any_bytes_are_read_without_an_error_and_no_good_line_is_missed(tmp_path, lines, ended):
    whole_file = b"\n".join(lines) + (b"\n" if ended else b"")
    (tmp_path / MONTH).write_bytes(whole_file)
    torn = []
    records = list(journal.read(tmp_path, torn.append))
    whole = [line for line in (lines if ended else lines[:-1]) if line.strip()]
    assert len(records) == sum(journal.parse(line)[0] is not None for line in whole)
    assert len(records) + sum(not line.tail for line in torn) == len(whole)
    backwards = [line for line in lines_backwards(tmp_path / MONTH) if line]
    assert backwards == [line for line in whole_file.split(b"\n")[::-1] if line]


def test_fifty_processes_append_at_once_and_every_row_is_there(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(me), "10"],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for me in range(50)]
    for writer in writers:
        writer.stdin.close()
    slowest = [float(writer.stdout.read()) for writer in writers]
    assert [writer.wait(60) for writer in writers] == [0] * 50
    for writer in writers:
        writer.stdout.close()
    torn = []
    ids = Counter(row["id"] for row in journal.read(tmp_path, torn.append))
    assert ids == {f"{me}-{number}": 1 for me in range(50) for number in range(10)}
    assert torn == []
    assert max(slowest) < 20, "an append is a write and an fsync: it queues for the disk and for nobody"


@pytest.mark.slow
def test_no_acknowledged_row_is_lost_when_writers_are_killed_two_hundred_times(tmp_path):
    seed = random.randrange(1 << 30)
    done = subprocess.run([sys.executable, "-c", KILLER, str(tmp_path), "200", "4", str(seed)],
                          capture_output=True, text=True, timeout=200, check=True)
    acknowledged = json.loads(done.stdout)
    torn = []
    there = Counter(row["id"] for row in journal.read(tmp_path, torn.append))
    print(f"{len(acknowledged)} acknowledged, {sum(there.values())} there, {len(torn)} torn")
    assert len(acknowledged) > 100
    assert [one for one in acknowledged if there[one] != 1] == []
    assert all(line.reason == "not JSON" or line.tail for line in torn)
    journal.append(tmp_path, exchange().to_record())
    assert find_exchange(tmp_path, identity(0))["id"] == identity(0)


def test_a_full_disk_is_an_error_and_what_was_recorded_before_is_unharmed(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
                             capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        written = fill(folder / "journal")
        with pytest.raises(LedgerError, match="the disk is full") as caught:
            journal.append(folder / "journal", exchange(999, answer="x" * 9000).to_record())
        assert str(folder) in str(caught.value)
        assert "free some space" in caught.value.hint
        assert len(written) > 20
        assert [row["id"] for row in journal.read(folder / "journal")] == written
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        journal.append(folder / "journal", exchange(2000).to_record())
        assert [row["id"] for row in journal.read(folder / "journal")] == [*written, identity(2000)]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    """Append until the disk is full; the ids that were acknowledged."""
    written = []
    for moment in range(100):
        try:
            journal.append(folder, exchange(moment, answer="x" * 9000).to_record())
        except LedgerError:
            return written
        written.append(identity(moment))
    raise AssertionError("the disk did not fill")


def test_a_write_cut_short_by_a_limit_is_an_error_and_harms_nothing(tmp_path):
    code = ("import resource, sys; from pathlib import Path; from swarmctl.ledger.journal import append\n"
            "from swarmctl.errors import LedgerError\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
            "row = {'kind': 'exchange', 'at': '2026-11-23T10:00:00Z', 'answer': 'x' * 6000}\n"
            "for n in range(9):\n"
            "    try: append(Path(sys.argv[1]), {**row, 'id': str(n)}); print(n)\n"
            "    except LedgerError as exc: assert 'full' in str(exc)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)],
                          capture_output=True, text=True, check=True)
    acknowledged = done.stdout.split()
    assert 0 < len(acknowledged) < 9
    journal.append(tmp_path, exchange(7).to_record())
    assert [row["id"] for row in journal.read(tmp_path)] == [*acknowledged, identity(7)]


def test_lines_longer_than_a_block_read_backwards(tmp_path):
    path = tmp_path / MONTH
    lines = [b"a" * 10, b"b" * 700_000, b"", b"c" * 64 * 1024, b"tail"]
    path.write_bytes(b"\n".join(lines))
    assert list(lines_backwards(path)) == lines[::-1]
    path.write_bytes(b"")
    assert list(lines_backwards(path)) == []


@pytest.fixture
def folder(tmp_path):
    for moment in range(40):
        month = "10" if moment < 20 else "11"
        row = exchange(moment, conversation="talk" if moment % 2 else "other", answer=f"answer {moment}",
                       at=f"2026-{month}-18T10:00:00.000Z")
        journal.append(tmp_path, row.to_record())
        journal.append(tmp_path, rating(1000 + moment, row, stars=4, score=0.5).to_record())
    return tmp_path


def test_an_exchange_is_found_by_its_id_its_beginning_or_its_end(folder):
    for moment in (0, 19, 20, 39):
        whole = identity(moment)
        for part in (whole, whole.upper(), whole[-7:], whole[:11]):
            assert find_exchange(folder, part)["id"] == whole


def test_ratings_come_with_their_exchange_also_from_a_later_month(folder):
    old = exchange(3)
    journal.append(folder, rating(5000, old, score=-1.0, at="2026-12-01T00:00:00Z").to_record())
    found = find(folder, old.id)
    assert [row["score"] for row in found.ratings] == [0.5, -1.0]
    assert standing_rating(found.ratings).score == -1.0


def test_an_ambiguous_id_lists_what_it_could_be(folder):
    with pytest.raises(UsageError, match="the id of 40 exchanges") as caught:
        find_exchange(folder, identity(0)[:6])
    assert identity(39) in caught.value.hint
    assert "and 30 more" in caught.value.hint


@pytest.mark.parametrize("part", ["zzzzzzzz", "abc", "../../etc", "", "u" * 16])
def test_an_unknown_or_impossible_id_is_a_usage_error(folder, part):
    with pytest.raises(UsageError) as caught:
        find_exchange(folder, part)
    assert "log list" in caught.value.hint


def test_a_conversation_goes_on_from_its_messages_and_the_answer(folder):
    row = exchange(7)
    assert conversation_messages(folder, row.id) == (*row.messages, Message("assistant", "answer 7"))
    assert last_messages(folder, "talk")[-1] == Message("assistant", "answer 39")
    assert last_messages(folder, "other")[-1] == Message("assistant", "answer 38")
    with pytest.raises(UsageError):
        last_messages(folder, "nobody's")


def test_a_question_that_got_no_answer_is_left_out_of_the_conversation(tmp_path):
    journal.append(tmp_path, exchange(1, answer="", finish="error", error="refused").to_record())
    assert conversation_messages(tmp_path, identity(1)) == (Message("system", "be brief"),)


def test_a_record_that_somebody_edited_is_a_clear_error(tmp_path):
    journal.append(tmp_path, {**exchange(1).to_record(), "messages": [{"text": "hm"}]})
    with pytest.raises(LedgerError, match="not in our form"):
        conversation_messages(tmp_path, identity(1))


def test_a_conversation_goes_on_from_the_calls_that_an_answer_asked_for(tmp_path):
    call = ToolCall("c1", "weather", '{"city": "Paris"}')
    row = {**exchange(1, answer="").to_record(), "tool_calls": [asdict(call)]}
    journal.append(tmp_path, row)
    assert conversation_messages(tmp_path, identity(1))[-1] == Message("assistant", "", (call,))
    told = Message("tool", "sun", tool_call_id="c1", name="weather")
    journal.append(tmp_path, {**exchange(2).to_record(), "messages": [told.to_record()]})
    assert conversation_messages(tmp_path, identity(2))[0] == told


def test_a_row_whose_calls_are_not_ours_is_named(tmp_path):
    journal.append(tmp_path, {**exchange(1).to_record(), "tool_calls": [{"id": "c1"}]})
    with pytest.raises(LedgerError, match="not in our form"):
        conversation_messages(tmp_path, identity(1))

"""`swarmctl log`: what was recorded, listed, shown, searched, queried and taken out."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from recorded import START, comparison, exchange, identity, paths_under, rating
from typer.testing import CliRunner

from swarmctl.cli.app import app
from swarmctl.cli.context import Context
from swarmctl.cli.log_show import page
from swarmctl.errors import LedgerError, SwarmError, UsageError
from swarmctl.ledger import journal, store
from swarmctl.ledger.lookup import Found
from swarmctl.ledger.rows import COLUMNS
from swarmctl.ledger.scores import scores
from swarmctl.ledger.terminal import Last, remember
from swarmctl.verbs import log as verb
from swarmctl.verbs.log import Wanted

NOW = START / 1000 + 86_400
LISTING = f"""\
id                when         category  s    rated   answered by             question
{identity(3)}  11-19 09:00  code      0.2          tiny-small on calisota  what is two and two?
{identity(2)}  11-18 10:00  routine   0.2          tiny-small on spinoza…  \\x1b]0;owned\\x07\\x9b3…
{identity(1)}  11-18 10:00  complex   0.2  2 of 5  tiny-large on worlock   Which SEA is saltiest?
{identity(0)}  11-18 10:00  routine   0.2  up      tiny-small on spinoza   what is two and two?
"""
NASTY = "\x1b]0;owned\x07\x9b31m\u202eevil\x7f"


@pytest.fixture
def paths(tmp_path):
    paths = paths_under(tmp_path)
    large = {"model": "tiny-large", "host": "worlock", "category": "complex"}
    rows = [exchange(0), exchange(1, question="Which SEA is saltiest?", answer="the Dead Sea", **large),
            exchange(2, question=NASTY, answer=NASTY, finish="length"),
            exchange(3, at="2026-11-19T09:00:00.000Z", category="code", host="calisota")]
    said = [rating(100, rows[0]),
            rating(101, rows[1], score=-0.5, stars=2, comment="it is the Dead Sea, yes"),
            comparison(102, rows[0], rows[1], "b")]
    for row in (*rows, *said):
        journal.append(paths.journal, row.to_record())
    remember(paths, "here", Last(identity(1), identity(1)))
    return paths


@pytest.fixture
def context(paths, tmp_path, monkeypatch):
    """What the command line is handed, a day later."""
    context = Context(paths, {"SWARMCTL_TERMINAL": "here"}, tmp_path / "inventory.yaml", lambda: NOW)
    monkeypatch.setattr(Context, "make", lambda _: context)
    return context


@pytest.fixture
def run(context, monkeypatch):
    """The command line in this process: what it printed, or the error it raised."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()

    def run(*args):
        done = CliRunner().invoke(app, ["log", *args])
        if isinstance(done.exception, SwarmError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    yield run
    monkeypatch.undo()
    time.tzset()


def ids(table):
    return [row[0] for row in table.rows]


def lines(text):
    return [line.rstrip() for line in text.splitlines()]


def test_alone_it_lists_newest_first_and_cuts_at_the_width(run, monkeypatch):
    monkeypatch.setattr("swarmctl.cli.log.WIDTH", 100)
    assert lines(run()) == lines(run("list")) == LISTING.splitlines()
    assert [line.split()[0] for line in lines(run("-n", "2"))[1:]] == [identity(3), identity(2)]


@pytest.mark.parametrize(("wanted", "moments"), [
    (Wanted(), [3, 2, 1, 0]), (Wanted(limit=2), [3, 2]), (Wanted(model="tiny-large"), [1]),
    (Wanted(host="calisota"), [3]), (Wanted(category="routine"), [2, 0]), (Wanted(rated="up"), [0]),
    (Wanted(rated="down"), [1]), (Wanted(rated="any"), [1, 0]), (Wanted(rated="none"), [3, 2]),
    (Wanted(since="2026-11-19T00:00:00+00:00"), [3]), (Wanted(since="1w"), [3, 2, 1, 0]),
    (Wanted(since="1m"), []), (Wanted(model="o'brien"), []), (Wanted(host="\udcff"), [])])
def test_listing_can_be_narrowed(paths, wanted, moments):
    assert ids(verb.listing(paths, wanted, NOW)) == [identity(moment) for moment in moments]


@pytest.mark.parametrize("wanted", [Wanted(since="soon"), Wanted(since="5y"), Wanted(since="999999w"),
                                    Wanted(rated="great")])
def test_a_filter_that_means_nothing_is_a_usage_error(paths, wanted):
    with pytest.raises(UsageError) as caught:
        verb.listing(paths, wanted, NOW)
    assert caught.value.hint


def test_listing_takes_in_what_was_recorded_a_moment_ago(paths):
    verb.listing(paths, Wanted(), NOW)
    journal.append(paths.journal, exchange(50).to_record())
    assert ids(verb.listing(paths, Wanted(limit=2), NOW)) == [identity(3), identity(50)]


def test_every_listing_has_json(run, paths, tmp_path):
    for args in (("list",), ("show",), ("search", "sea"), ("sql", "SELECT 1 AS one"), ("check",),
                 ("rebuild",), ("export", "--out", str(tmp_path / "all"))):
        json.loads(run(*args, "--json"))
    (row,) = json.loads(run("list", "--json", "--rated", "down"))
    assert row == {"id": identity(1), "at_utc": "2026-11-18T10:00:01", "category": "complex",
                   "model": "tiny-large", "host": "worlock", "finish": "stop", "total_seconds": 0.2,
                   "score": -0.5, "stars": 2, "question": "Which SEA is saltiest?"}


def test_show_tells_all_of_one_exchange(run):
    assert run("show") == run("show", identity(1)[-5:]) == f"""\
exchange      {identity(1)}  2026-11-18T10:00:01.000Z  via ask
conversation  {identity(1)}
answered by   tiny-large on worlock (llamacpp)
weights       {"d" * 64}
template      {"t" * 64}
category      complex
finish        stop
parameters    max_tokens 64
timings       first token 0.06 s, prompt 12 tokens in 0.05 s (240/s), answer 4 tokens in 0.10 s (40/s), \
total 0.20 s
failed        tiny-large on calisota: connection refused

[system]
be brief
[user]
Which SEA is saltiest?
[answer]
the Dead Sea

route: cheapest
  host     model       total
  spinoza  tiny-small  1.25
  out: tiny-large on worlock: off

rating 2026-11-18T11:00:00.000Z  {identity(101)}  score -0.5 (2 of 5)
  comment: it is the Dead Sea, yes

comparison 2026-11-18T12:00:00.000Z  tiny-small ({identity(0)}) against tiny-large ({identity(1)}): b
"""


def test_show_needs_no_duckdb_file(run, paths):
    run("show", identity(0))
    assert not paths.ledger.exists()


def test_a_page_of_a_bare_record_is_still_a_page():
    bare = {"id": "a", "at": "b", "kind": "exchange"}
    assert page(Found(bare, (), ())).startswith("exchange      a  b")


@pytest.mark.parametrize(("text", "found"), [
    ("SALTIEST", [1]), ("dead sea", [1]), ("two and two", [3, 0]), ("four", [3, 0]), ("it is the", [1]),
    ("%", []), ("be brief", []), ("evil", [2]), ("\udcff", []), ("'); DROP TABLE exchanges; --", [])])
def test_search_looks_at_questions_answers_comments_and_corrections(paths, text, found):
    assert ids(verb.search(paths, text)) == [identity(moment) for moment in found]


def test_search_shows_where_it_was_found(run):
    row = lines(run("search", "yes"))[1]
    assert row.endswith("  comment  tiny-large on worlock  it is the Dead Sea, yes")
    assert len(json.loads(run("search", "two", "-n", "1", "--json"))) == 1


def test_sql_answers_as_a_table_as_json_and_as_csv(run):
    question = "SELECT model, count(*) AS n FROM exchanges GROUP BY ALL ORDER BY n"
    assert lines(run("sql", question)) == ["model       n", "tiny-large  1", "tiny-small  3"]
    assert json.loads(run("sql", question, "--json")) == [{"model": "tiny-large", "n": 1},
                                                          {"model": "tiny-small", "n": 3}]
    assert list(csv.reader(io.StringIO(run("sql", question, "--csv")))) == [
        ["model", "n"], ["tiny-large", "1"], ["tiny-small", "3"]]


def test_sql_gives_json_for_every_type_that_duckdb_has(run):
    printed = run("sql", "SELECT now() > TIMESTAMPTZ '2020-01-01' AS t, "
                  "TIMESTAMPTZ '2026-11-23 10:00:00+00' AS z, 1/0 AS inf, 'nan'::DOUBLE AS nan, "
                  "1.5::DECIMAL(9, 2) AS d, '\\x01'::BLOB AS b, {'k': [1, 2]} AS s, INTERVAL 90 SECOND AS i, "
                  "DATE '2026-11-23' AS day, 1 AS twice, 2 AS twice, "
                  "123456789012345678901234567890 AS huge, NULL AS nothing", "--json")
    (row,) = json.loads(printed)
    assert row.pop("z").startswith("2026-11-23 ")
    assert row == {"t": True, "inf": None, "nan": None, "d": "1.50", "b": "01", "s": {"k": [1, 2]}, "i": 90.0,
                   "day": "2026-11-23", "twice": 1, "twice_11": 2,
                   "huge": 123456789012345678901234567890, "nothing": None}


def test_sql_without_a_result_prints_nothing(run):
    assert run("sql", "/* nothing */") == ""


@pytest.mark.parametrize("statement", [
    "DELETE FROM ratings", "INSERT INTO torn VALUES ('f', 1, 1, 'r')", "DROP VIEW answers",
    "CREATE TABLE x (y INT)", "UPDATE exchanges SET answer = ''", "COPY exchanges TO '{out}'",
    "EXPORT DATABASE '{out}'",
    "ATTACH '{out}' AS other", "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'",
    "FROM glob('/*')", "INSTALL httpfs", "LOAD '/tmp/evil.so'", "SET enable_external_access = true",
    "PRAGMA enable_external_access = true", "SELECT 1; COPY exchanges TO '{out}'",
    "SET lock_configuration = false", "IMPORT DATABASE '/tmp'", "SELECT nonsense",
    "SELEC", "SELECT 1 +", "SELECT 'x'::INT", "CALL nothing()",
    "SELECT * FROM 'https://127.0.0.1:1/x.parquet'"])
def test_sql_can_read_the_ledger_and_do_nothing_else(paths, tmp_path, statement):
    store.sync(paths)
    before = paths.ledger.read_bytes()
    with pytest.raises(UsageError) as caught:
        verb.query(paths, statement.format(out=tmp_path / "out"))
    assert caught.value.exit_code == 2
    assert caught.value.message
    assert not (tmp_path / "out").exists()
    assert paths.ledger.read_bytes() == before


def test_control_characters_are_made_visible_wherever_text_is_shown(run):
    plain = (("list",), ("search", "evil"), ("show", identity(2)), ("sql", "SELECT question FROM exchanges"))
    for args in (*plain, *((*args, "--json") for args in plain)):
        printed = run(*args)
        assert not set(printed) & set("\x1b\x07\x9b\x7f\u202e"), args
        assert "evil" in printed


def test_csv_into_a_file_keeps_text_as_it_was(run):
    printed = run("sql", f"SELECT answer FROM answers WHERE id = '{identity(2)}'", "--csv")
    assert list(csv.reader(io.StringIO(printed))) == [["answer"], [NASTY]]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_an_export_loads_back(paths, tmp_path, form):
    out = tmp_path / "it's out"
    written = verb.export(paths, out, form=form)
    assert [path.name for path in written] == [f"{table}.{form}" for table in verb.EXPORTED]
    with store.open_ledger(paths, read_only=True) as connection:
        for path in written:
            kept = [shape(row, form) for row in connection.execute(f"SELECT * FROM {path.stem}").fetchall()]
            assert sorted(map(repr, loaded(path, form))) == sorted(map(repr, kept)), path.name
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in written)


def loaded(path, form):
    if form == "parquet":
        return duckdb.connect().execute("SELECT * FROM read_parquet(?)", [str(path)]).fetchall()
    return [tuple(json.loads(line).values()) for line in path.read_text().splitlines()]


def shape(row, form):
    """A row as it is in the file: JSON has texts for times, and JSON columns as they are."""
    if form == "parquet":
        return row
    return tuple(json.loads(value) if isinstance(value, str) and value[:1] == "{" else
                 str(value) if hasattr(value, "isoformat") else value for value in row)


def test_one_table_or_view_goes_to_one_file(run, tmp_path):
    run("export", "--table", "approval", "--format", "jsonl", "--out", str(tmp_path / "a.jsonl"))
    assert [json.loads(line)["model"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    (tmp_path / "folder").mkdir()
    folder = str(tmp_path / "folder")
    assert run("export", "-t", "scores", "-o", folder) == f"{folder}/scores.parquet\n"


def test_an_export_replaces_nothing_unasked(paths, tmp_path):
    (tmp_path / "f.jsonl").write_text("precious")
    with pytest.raises(UsageError, match="there already"):
        verb.export(paths, tmp_path / "f.jsonl", form="jsonl", table="ratings")
    assert (tmp_path / "f.jsonl").read_text() == "precious"
    verb.export(paths, tmp_path / "f.jsonl", form="jsonl", table="ratings", force=True)
    assert len((tmp_path / "f.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(("form", "table", "out"), [
    ("xml", None, "x"), ("jsonl", "secrets", "x"), ("jsonl", "ratings; DROP TABLE ratings", "x"),
    ("jsonl", None, "file")])
def test_an_export_of_what_there_is_not_is_a_usage_error(paths, tmp_path, form, table, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        verb.export(paths, tmp_path / out, form=form, table=table, force=True)
    assert not (tmp_path / "x").exists()


def test_an_export_that_cannot_be_written_says_so_and_leaves_nothing(paths, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot write"):
        verb.export(paths, tmp_path / "file" / "x.jsonl", form="jsonl", table="ratings")
    assert verb.listing(paths, Wanted(), NOW).rows


def test_an_export_to_a_full_disk_says_so_and_leaves_nothing(paths, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        journal.append(paths.journal, exchange(70, answer=os.urandom(200_000).hex()).to_record())
        with pytest.raises(LedgerError, match="cannot write"):
            verb.export(paths, small / "e.parquet", form="parquet", table="exchanges")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_rebuild_forgets_what_was_deleted_from_the_journal(run, paths):
    run("list")
    scores(paths)
    file = paths.journal / "2026-11.jsonl"
    kept = [line for line in file.read_bytes().splitlines() if identity(1).encode() not in line]
    file.write_bytes(b"\n".join(kept) + b"\n")
    assert run("rebuild") == f"{paths.ledger}: 4 records\n"
    assert identity(1) not in run("list", "--json")
    assert scores(paths) == {("tiny-small", "routine"): (1.0, 0.0)}


def test_check_counts_records_and_names_what_is_none(run, paths):
    assert run("check") == "1 file: comparison 1, exchange 4, rating 2; 0 lines torn\n"
    with (paths.journal / "2026-11.jsonl").open("ab") as file:
        file.write(b'\n{"kind": "exch\n{"kind": "rating", "id": "x", "at": "y"}\n{"half')
    journal_file = paths.journal / "2026-11.jsonl"
    assert run("check").splitlines()[1:] == [
        f"{journal_file}:16: not JSON",
        f"{journal_file}:17: a rating without exchange, model, category and a score from -1 to 1",
        f"{journal_file}:18: not ended: being written, or cut off"]
    assert [line["line"] for line in json.loads(run("check", "--json"))["torn"]] == [16, 17, 18]


def test_an_empty_journal_is_no_error(tmp_path, run, paths):
    for file in journal.files(paths.journal):
        file.unlink()
    assert json.loads(run("list", "--json")) == []
    assert run("list") == run("list", "--rated", "up") == ""
    assert run("check") == "0 files: no records; 0 lines torn\n"
    with pytest.raises(UsageError):
        run("show")


@pytest.mark.parametrize(("args", "said"), [
    (("list", "-m", "nobody"), "`swarmctl log` alone lists all"), (("search", "xyzzy"), "holds 'xyzzy'")])
def test_what_finds_nothing_says_so_beside_the_output(context, args, said):
    done = CliRunner().invoke(app, ["log", *args])
    assert (done.exit_code, done.stdout) == (0, "")
    assert said in done.stderr


def test_a_journal_without_a_question_says_what_to_do(context):
    for file in journal.files(context.paths.journal):
        file.unlink()
    assert "`swarmctl ask`" in CliRunner().invoke(app, ["log"]).stderr


def test_a_damaged_ledger_names_the_command_that_heals_it(run, paths):
    run("list")
    paths.ledger.write_bytes(b"garbage" * 5000)
    with pytest.raises(LedgerError) as caught:
        run("sql", "SELECT 1")
    assert "swarmctl log rebuild" in caught.value.hint
    run("rebuild")
    assert json.loads(run("sql", "SELECT count(*) AS n FROM exchanges", "--json")) == [{"n": 4}]


def test_the_exit_status_of_a_wrong_statement_is_that_of_wrong_usage(paths, tmp_path):
    environ = {**os.environ, "SWARMCTL_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "swarmctl", "log", "sql", "SELECT nope"], env=environ,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("swarmctl: Binder Error: ")


def test_the_page_about_the_ledger_names_every_column_and_its_examples_run(paths):
    text = (Path(__file__).parents[1] / "docs" / "ledger.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    for table, columns in COLUMNS.items():
        assert f"**{table}**" in text
        assert set(columns) <= named, table
    assert all(f"**{view}**" in text for view in verb.VIEWS)
    examples = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 6
    assert all(verb.query(paths, example).columns for example in examples)


def test_ctrl_c_stops_a_long_statement(paths, tmp_path):
    code = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from swarmctl.cli.main import main; main()")
    statement = "SELECT count(*) FROM range(1000000) a, range(1000000) b, range(1000) c"
    running = subprocess.Popen([sys.executable, "-c", code, "log", "sql", statement], text=True,
                               env={**os.environ, "SWARMCTL_HOME": str(tmp_path)}, stderr=subprocess.PIPE)
    try:
        started = time.monotonic()
        while not paths.ledger.exists() and time.monotonic() < started + 30:
            time.sleep(0.05)
        time.sleep(1.0)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, said.strip()) == (130, "")


def test_duckdb_draws_no_progress_bar_into_the_answer(run):
    setting = "SELECT value FROM duckdb_settings() WHERE name = 'enable_progress_bar'"
    assert json.loads(run("sql", setting, "--json")) == [{"value": "false"}]

"""Rating: the last answer of this terminal or any other, said in parts, corrected, taken back."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from recorded import START, exchange, identity, paths_under
from typer.testing import CliRunner

from swarmctl.cli.app import app
from swarmctl.cli.context import Context
from swarmctl.cli.rate import rate_line
from swarmctl.errors import LedgerError, SwarmError, UsageError
from swarmctl.ledger import journal
from swarmctl.ledger.lookup import find, standing_rating
from swarmctl.ledger.scores import scores
from swarmctl.ledger.terminal import Last, recall, remember, terminal_id
from swarmctl.verbs import rate as verb
from swarmctl.verbs.rate import Opinion, edit, editor, rate, undo

NOW = START / 1000 + 5000


@pytest.fixture
def paths(tmp_path):
    paths = paths_under(tmp_path)
    for moment in range(3):
        journal.append(paths.journal, exchange(moment, model="tiny-large", host="worlock",
                                               answer=f"answer {moment} " + "x" * 80).to_record())
    remember(paths, "here", Last(identity(2), "talk"))
    return paths


@pytest.fixture
def run(paths, tmp_path, monkeypatch):
    """The command line in this process. Output is (exit status or the error, stdout)."""
    monkeypatch.setenv("SWARMCTL_HOME", str(tmp_path))
    monkeypatch.setenv("SWARMCTL_TERMINAL", "here")

    def run(*args, stdin=None):
        done = CliRunner().invoke(app, ["rate", *args], input=stdin)
        if isinstance(done.exception, SwarmError):
            return done.exception, done.stdout
        return done.exit_code, done.stdout

    return run


def standing(paths, moment=2):
    return standing_rating(find(paths.journal, identity(moment)).ratings)


def test_the_last_answer_of_this_terminal_is_rated(paths, run):
    status, out = run("up")
    assert (status, out) == (0, "rated up: answer 2 " + "x" * 50 + "… (tiny-large on worlock)\n")
    rated = standing(paths)
    assert (rated.score, rated.model, rated.host, rated.category) == (1.0, "tiny-large", "worlock", "routine")
    assert (rated.digest, rated.terminal, rated.stars) == ("d" * 64, "here", None)
    assert scores(paths) == {("tiny-large", "routine"): (1.0, 0.0)}


@pytest.mark.parametrize("args", [("down", identity(0)), (identity(0), "down"), ("down", identity(0)[-6:])])
def test_another_answer_is_rated_by_its_id_before_or_after_the_value(paths, run, args):
    assert run(*args)[0] == 0
    assert standing(paths, 0).score == -1.0
    assert standing(paths) is None


@pytest.mark.parametrize(("stars", "score"), [(1, -1.0), (2, -0.5), (3, 0.0), (4, 0.5), (5, 1.0)])
def test_stars_spread_evenly_from_bad_to_good(paths, run, stars, score):
    assert run(str(stars))[1].startswith(f"rated {stars} of 5: ")
    assert (standing(paths).stars, standing(paths).score) == (stars, score)


def test_what_is_not_said_anew_stays(paths, run):
    run("up")
    run("--comment", "short and right")
    assert (standing(paths).score, standing(paths).comment) == (1.0, "short and right")
    run("2")
    assert (standing(paths).score, standing(paths).stars) == (-0.5, 2)
    assert standing(paths).comment == "short and right"
    run("down")
    assert (standing(paths).score, standing(paths).stars) == (-1.0, None)


def test_undoing_goes_back_one_rating_at_a_time(paths, run):
    run("up")
    run("down", "--comment", "wrong after all")
    assert "took back down, commented: answer 2" in run("--undo")[1]
    assert standing(paths).score == 1.0
    assert run("--undo")[0] == 0
    assert standing(paths) is None
    error, _ = run("--undo")
    assert isinstance(error, UsageError)
    assert scores(paths) == {}


def test_undoing_takes_an_id(paths, run):
    run("up", identity(1))
    assert run("--undo", identity(1))[0] == 0
    assert standing(paths, 1) is None


def test_a_correction_alone_counts_as_down_and_keeps_an_earlier_rating(paths, run):
    assert run("--correction", "it is four")[1].startswith("rated down, corrected: ")
    assert (standing(paths).score, standing(paths).correction) == (-1.0, "it is four")
    run("4", identity(1))
    run(identity(1), "--correction", "-", stdin="it is\nfour\n")
    assert (standing(paths, 1).score, standing(paths, 1).correction) == (0.5, "it is\nfour")


def test_an_answer_is_corrected_in_the_editor(paths, run, monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/answer/result/")
    assert run("--correct")[0] == 0
    assert standing(paths).correction == "result 2 " + "x" * 80


@pytest.mark.parametrize(("command", "message"), [
    ("true", "left as it is"), ("truncate -s 0", "is empty"), ("false", "ended with status 1"),
    ("no-such-editor --wait", "did not start"), ("'unclosed", "not a command")])
def test_an_editor_that_changes_nothing_or_fails_records_nothing(paths, run, monkeypatch, command, message):
    monkeypatch.setenv("VISUAL", command)
    error, _ = run("--correct")
    assert message in str(error)
    assert standing(paths) is None


def test_the_editor_is_visual_then_editor_then_what_there_is(tmp_path):
    assert editor({"VISUAL": "code --wait", "EDITOR": "vi"}) == ("code", "--wait")
    assert editor({"EDITOR": "vi"}) == ("vi",)
    with pytest.raises(UsageError, match="no editor"):
        editor({"PATH": str(tmp_path)})
    (tmp_path / "nano").write_text("#!/bin/sh\n")
    (tmp_path / "nano").chmod(0o755)
    assert editor({"PATH": str(tmp_path)}) == ("nano",)


def test_the_edited_file_is_private_and_odd_text_survives_it():
    odd = os.fsdecode(b"caf\xe9\n")
    assert edit(("sh", "-c", 'test "$(stat -c %a "$(dirname "$0")")" = 700'), odd) == odd


@pytest.mark.parametrize(("args", "message"), [
    ((), "nothing was said"), (("good",), "'good' is no rating"), (("6",), "'6' is no rating"),
    (("up", "zzzzzzzz"), "no exchange 'zzzzzzzz'"), (("up", "ab"), "is not an id"),
    (("--undo", "up"), "says nothing new"), (("--correct", "--correction", "x"), "one of them"),
    (("up", identity(0)[:9]), "the id of 3 exchanges")])
def test_what_cannot_be_rated_is_a_usage_error_and_records_nothing(paths, run, args, message):
    error, out = run(*args)
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert out == ""
    assert [row["kind"] for row in journal.read(paths.journal)] == ["exchange"] * 3


def test_a_terminal_that_asked_nothing_is_told_how_to_name_an_answer(paths):
    with pytest.raises(UsageError) as caught:
        rate(paths, Opinion("up"), terminal="elsewhere", now=NOW)
    assert "log list" in caught.value.hint


@pytest.mark.parametrize(("finish", "note"), [("error", "had failed"), ("cancelled", "had been stopped")])
def test_a_failed_or_stopped_answer_can_be_rated_with_a_note(paths, finish, note):
    journal.append(paths.journal, exchange(9, finish=finish, answer="").to_record())
    rated = rate(paths, Opinion("down"), terminal="here", now=NOW, id_part=identity(9))
    assert note in rated.note
    assert standing(paths, 9).score == -1.0


def test_ratings_keep_their_order_when_the_clock_goes_back(paths):
    clock = count(int(NOW), -100)
    for value in ("up", "down", "1", "5"):
        rate(paths, Opinion(value), terminal="here", now=next(clock))
    assert standing(paths).stars == 5
    undo(paths, terminal="here", now=next(clock))
    assert standing(paths).stars == 1


def test_json_is_the_row_that_was_recorded(paths, run):
    printed = json.loads(run("up", "--json")[1])
    assert printed == list(journal.read(paths.journal))[-1]


def test_what_a_model_wrote_does_not_drive_the_terminal(paths, run):
    journal.append(paths.journal, exchange(9, answer="\x1b]0;owned\x07 \x9b31m\nhello").to_record())
    assert run("up", identity(9))[1] == (
        "rated up: \\x1b]0;owned\\x07 \\x9b31m hello (tiny-small on spinoza)\n")


def test_chat_gets_one_line(paths, tmp_path):
    context = Context(paths, {"SWARMCTL_TERMINAL": "here"}, tmp_path / "inventory.yaml", lambda: NOW)
    assert rate_line(context, "4", "nice").startswith("rated 4 of 5, commented: answer 2")


def test_terminals_are_apart_and_odd_names_stay_in_their_folder(paths):
    name = terminal_id({"SWARMCTL_TERMINAL": "../../etc/passwd\n"})
    remember(paths, name, Last("a", "b"))
    assert [path.name for path in sorted((paths.state / "terminals").iterdir())] == [
        "..-..-etc-passwd-.json", "here.json"]
    assert (recall(paths, name), recall(paths, "nobody")) == (Last("a", "b"), None)
    (paths.state / "terminals" / "here.json").write_text("[]")
    assert recall(paths, "here") is None


def test_threads_of_one_process_may_note_the_same_terminal(paths):
    lasts = [Last(str(number), "talk") for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda last: remember(paths, "here", last), lasts))
    assert recall(paths, "here") in lasts
    assert [path.name for path in (paths.state / "terminals").iterdir()] == ["here.json"]


def test_a_note_that_cannot_be_written_leaves_no_older_one_to_be_rated(paths, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    remember(paths, "here", Last("new", "talk"))
    assert recall(paths, "here") is None


def test_notes_of_terminals_closed_long_ago_go_when_a_new_one_asks(paths):
    os.utime(paths.state / "terminals" / "here.json", (1, 1))
    remember(paths, "another", Last("a", "b"))
    assert [path.name for path in (paths.state / "terminals").iterdir()] == ["another.json"]


def test_a_note_that_can_be_neither_replaced_nor_removed_is_no_silence(paths):
    note = paths.state / "terminals" / "here.json"
    note.unlink()
    (note / "in the way").mkdir(parents=True)
    with pytest.raises(LedgerError, match="cannot note this terminal's last answer") as caught:
        remember(paths, "here", Last(identity(1), "talk"))
    assert f"swarmctl rate up {identity(1)}" in caught.value.hint


def test_without_a_name_a_terminal_is_its_tty_and_session():
    assert terminal_id({}).endswith(f"-{os.getsid(0)}")


def test_rating_loads_neither_duckdb_nor_rich(paths, tmp_path):
    code = ("import sys; from swarmctl.cli.app import app; app(['rate', 'up'], standalone_mode=False)\n"
            "loaded = {'duckdb', 'fabric', 'pydantic', 'yaml', 'torch'} & set(sys.modules)\n"
            "assert not loaded, loaded")
    environ = {**os.environ, "SWARMCTL_HOME": str(tmp_path), "SWARMCTL_TERMINAL": "here"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rated up: ")


def test_fifty_ratings_at_once_are_all_there(paths, tmp_path):
    environ = {**os.environ, "SWARMCTL_HOME": str(tmp_path), "SWARMCTL_TERMINAL": "here"}
    code = ("import sys; from swarmctl.paths import Paths; from swarmctl.verbs.rate import Opinion, rate\n"
            "paths = Paths.from_environ({'SWARMCTL_HOME': sys.argv[1], 'HOME': '/'}); sys.stdin.read()\n"
            f"rate(paths, Opinion('up', sys.argv[2]), terminal='here', now={NOW})")
    several = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)], env=environ,
                                stdin=subprocess.PIPE) for number in range(50)]
    for one in several:
        one.stdin.close()
    assert [one.wait(60) for one in several] == [0] * 50
    comments = {row["comment"] for row in journal.read(paths.journal) if row["kind"] == "rating"}
    assert comments == {str(number) for number in range(50)}
    assert scores(paths) == {("tiny-large", "routine"): (1.0, 0.0)}


def test_every_value_that_is_documented_is_taken(paths):
    for value in verb.VALUES:
        assert rate(paths, Opinion(value), terminal="here", now=NOW).standing is not None

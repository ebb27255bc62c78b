"""Evaluating for real: the two shipped models served by llama-server, one against the other."""

from __future__ import annotations

import json
import re
import signal
import threading
from dataclasses import replace
from random import Random
from xml.etree import ElementTree

import duckdb
import pytest
from running import Cli
from test_ask import Server
from waiting import until

from recipes.tiny.tasks import draw
from swarmctl.dispatch.queue import length
from swarmctl.dispatch.slots import claim, claimed
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.errors import UsageError
from swarmctl.evaluation import report as pages
from swarmctl.evaluation.answering import Style, lanes_named, replies
from swarmctl.evaluation.ballots import blind_votes, thumbs
from swarmctl.evaluation.questions import capability
from swarmctl.fleet.snapshot import Fleet, read_fleet, write_fleet
from swarmctl.learning.grade import MATCHES
from swarmctl.ledger.journal import append
from swarmctl.paths import Paths


@pytest.mark.parametrize(("match", "answer", "reference", "grade"), [
    ("exact", " Paris\n", "Paris", 1), ("exact", "It is Paris", "Paris", 0), ("exact", "paris", "Paris", 0),
    ("f1", "It is Paris", "Paris", 0.5), ("f1", "", "", 1), ("f1", "Rome", "Paris", 0),
    ("contains", "It is Paris, I think.", "Paris", 1), ("contains", "Parisian", "Paris", 0),
    ("number", "47 + 38 is 85.", "85", 1), ("number", "1,200", "1200", 1), ("number", "none", "85", 0),
    ("number", "85 and 86", "85", 0), ("regex", "abc123", r"\d{3}$", 1),
])
def test_grades_are_what_their_names_say(match: str, answer: str, reference: str, grade: float) -> None:
    assert MATCHES[match](answer, reference) == grade


@pytest.mark.parametrize(("line", "said"), [
    ("{", "line 2"), ("[]", "answer"), ('{"prompt": "a"}', "no `answer` text"),
    ('{"answer": "a"}', "neither a `prompt` text nor `messages`"),
    ('{"prompt": "a", "answer": "b", "match": "near"}', "exact, f1, contains, number, regex"),
    ('{"prompt": "a", "answer": "(", "match": "regex"}', "no regular expression"),
])
def test_a_bad_line_of_a_capability_set_is_named_with_what_would_be_right(tmp_path, line, said) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text('{"prompt": "2 + 2", "answer": "4"}\n' + line + "\n")
    with pytest.raises(UsageError) as error:
        capability(file)
    assert "line 2" in error.value.message
    assert said in error.value.message


def test_an_empty_or_binary_capability_set_is_refused(tmp_path) -> None:
    for content in (b"", b"\xff\xfe"):
        (tmp_path / "set.jsonl").write_bytes(content)
        with pytest.raises(UsageError):
            capability(tmp_path / "set.jsonl")


def test_votes_are_read_by_digest_in_their_order_and_both_bad_is_a_tie(tmp_path) -> None:
    paths = Paths.from_environ({"SWARMCTL_HOME": str(tmp_path)})
    exchange = {"v": 1, "kind": "exchange", "at": "2026-11-23T10:00:00+00:00", "model": "m", "messages": []}
    for name, digest in (("x1", "new"), ("x2", "old"), ("x3", "other")):
        append(paths.journal, {**exchange, "id": f"{name:0>16}", "digest": digest})
    vote = {"v": 1, "kind": "comparison", "at": "2026-11-23T10:01:00+00:00", "model_a": "m", "model_b": "m",
            "category": "routine", "left": "x"}
    for number, (a, b, choice) in enumerate([("x1", "x2", "a"), ("x2", "x1", "a"), ("x2", "x1", "b"),
                                             ("x1", "x2", "both-bad"), ("x1", "x3", "a")]):
        append(paths.journal, {**vote, "id": f"{number:0>16}", "a": f"{a:0>16}", "b": f"{b:0>16}",
                               "choice": choice})
    assert blind_votes(paths, "new", "old") == (True, False, True, None)
    rating = {"v": 1, "kind": "rating", "at": "2026-11-23T10:02:00+00:00", "model": "m",
              "category": "routine"}
    for number, (of, digest, score) in enumerate([("x1", "new", 1.0), ("x2", "old", -1.0)]):
        append(paths.journal, {**rating, "id": f"r{number:0>15}", "exchange": f"{of:0>16}", "digest": digest,
                               "score": score})
    assert thumbs(paths, "new", "old") == (True,)


@pytest.fixture(scope="module")
def swarm(llamacpp_bin):
    servers = [Server(llamacpp_bin, "small", 512), Server(llamacpp_bin, "large", 1024)]
    yield servers
    for server in servers:
        server.kill()


@pytest.fixture
def cli(swarm, tmp_path):
    """A home with both served, a data set and a capability set."""
    paths = Paths.from_environ({"SWARMCTL_HOME": str(tmp_path)})
    inventory = paths.inventory
    inventory.parent.mkdir(parents=True)
    inventory.write_text("")
    write_fleet(paths.fleet, Fleet(str(inventory), "", "", None, 30.0, 60.0,
                                   tuple(server.entry(f"h{n}", 50.0) for n, server in enumerate(swarm))))
    data_set(paths, 40)
    (tmp_path / "set.jsonl").write_text("\n".join(
        json.dumps({"prompt": task.question, "answer": task.answer}) for task in tasks("spelling", 60)))
    return Cli(paths, tmp_path)


def tasks(kind: str, count: int) -> list:
    rng = Random(f"eval {kind}")
    return [draw(kind, rng, held_out=True) for _ in range(count)]


def data_set(paths: Paths, count: int) -> None:
    """A held-out share of sums, which only large can do."""
    folder = paths.data / "datasets" / "dpo-20261123-00000000"
    folder.mkdir(parents=True)
    rows = [{"prompt": [{"role": "user", "content": task.question}], "reference": task.answer,
             "group": task.key} for task in tasks("sum", count)]
    (folder / "rows.json").write_text(json.dumps(rows))
    connection = duckdb.connect()
    connection.execute(f"COPY (SELECT * FROM read_json('{folder / 'rows.json'}')) "
                       f"TO '{folder / 'heldout.parquet'}' (FORMAT parquet)")
    connection.close()
    (folder / "card.json").write_text(json.dumps({"kind": "dpo", "sha256": "0" * 64, "created": "2026-11-23",
                                                  "rows": {"train": 0, "heldout": count}}))


@pytest.mark.runtime
def test_a_better_model_is_found_better_and_a_worse_one_worse_and_the_report_says_why(cli, tmp_path) -> None:
    asked = ("--temperature", "0", "--measure", "exact", "--max-tokens", "48", "--capability",
             str(tmp_path / "set.jsonl"))
    better = json.loads(cli.run("eval", "tiny-large", "--against", "tiny-small", *asked, "--json").stdout)
    worse = json.loads(cli.run("eval", "tiny-small", "--against", "tiny-large", *asked, "--json").stdout)
    assert (better["decision"], worse["decision"]) == ("promote", "rollback")
    assert better["measures"]["references"]["new"] > 0.9 > 0.2 > better["measures"]["references"]["old"]
    assert better["measures"]["references"]["mean"] == -worse["measures"]["references"]["mean"]
    folder = next((cli.paths.data / "evaluations" / "tiny-large").iterdir())
    assert "The new release is better" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    ElementTree.fromstring(re.search(r"<svg.*</svg>", page).group())
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.runtime
def test_an_evaluation_that_was_cut_goes_on_where_it_was(cli) -> None:
    asked = ("eval", "tiny-large", "--against", "tiny-small", "--temperature", "0", "--max-tokens", "48")
    cli.run(*asked, "--limit", "10")
    kept = next(cli.paths.data.glob("evaluations/tiny-large/*/answers-digest-large-t0-48.jsonl"))
    before = kept.read_text()
    kept.write_text(before + '{"key": "torn')
    cli.run(*asked, "--limit", "20")
    after = kept.read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 21


@pytest.mark.runtime
def test_an_evaluation_waits_for_a_slot_and_lets_people_go_first(cli) -> None:
    (small,) = (one for one in make_swarm(cli.paths, read_fleet(cli.paths.fleet)).candidates
                if one.model == "tiny-small")
    tickets = cli.paths.state / "queue"
    with claim(cli.paths, small, small.parallel):
        evaluating = cli.start("eval", "tiny-large", "--against", "tiny-small", "--max-tokens", "8",
                               "--limit", "3", "--json")
        (theirs,) = until(lambda: sorted(tickets.glob("[0-9]*")))
        asking = cli.start("ask", "-m", "tiny-small", "What is the capital of France?")
        line = until(lambda: len(found := sorted(tickets.glob("[0-9]*"))) == 2 and found)
        assert line.index(theirs) == 1, "whoever came later is before it"
        assert not next(cli.paths.data.glob("evaluations/tiny-large/*/answers-digest-small-*")).read_text()
    for process in (asking, evaluating):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert list(tickets.iterdir()) == []


@pytest.mark.runtime
def test_a_stopped_evaluation_leaves_the_line_at_once_and_holds_nothing(cli, swarm, tmp_path) -> None:
    entries = tuple(swarm[0].entry(name, 50.0) for name in ("free", "full"))
    write_fleet(cli.paths.fleet, replace(read_fleet(cli.paths.fleet), hosts=entries))
    lanes = lanes_named(cli.paths, read_fleet(cli.paths.fleet), "tiny-small")
    full = lanes[1].candidate
    questions = capability(tmp_path / "set.jsonl")

    def ctrl_c(done: int, _: int) -> None:
        if done:
            until(lambda: length(cli.paths))
            raise KeyboardInterrupt

    with claim(cli.paths, full, full.parallel):
        with pytest.raises(KeyboardInterrupt):
            replies(lanes, questions, Style(max_tokens=8), tmp_path / "kept.jsonl", tick=ctrl_c,
                    lost=lambda *_: None)
        until(lambda: not length(cli.paths))
        until(lambda: not [one for one in threading.enumerate() if one.name == "swarmctl-evaluate"])
    assert [claimed(cli.paths, lane.candidate, lane.candidate.parallel) for lane in lanes] == [0, 0]


@pytest.mark.runtime
def test_ctrl_c_ends_an_evaluation_that_waits_in_line(cli) -> None:
    (small,) = (one for one in make_swarm(cli.paths, read_fleet(cli.paths.fleet)).candidates
                if one.model == "tiny-small")
    with claim(cli.paths, small, small.parallel):
        evaluating = cli.start("eval", "tiny-large", "--against", "tiny-small", "--max-tokens", "8",
                               "--limit", "3")
        until(lambda: length(cli.paths))
        evaluating.send_signal(signal.SIGINT)
        _, said = evaluating.communicate(timeout=120)
        assert evaluating.returncode == 130, said
        assert b"Traceback" not in said
        assert length(cli.paths) == 0


@pytest.mark.runtime
def test_a_judge_sees_every_pair_in_both_orders_and_does_not_touch_the_other_measures(cli) -> None:
    done = json.loads(cli.run("eval", "tiny-large", "--against", "tiny-small", "--temperature", "0",
                              "--max-tokens", "48", "--limit", "10", "--judge", "tiny-large", "--by", "judge",
                              "--json").stdout)
    judge = done["measures"]["judge"]
    assert judge["wins"] + judge["losses"] + judge["ties"] == 10
    assert judge["model"] == "tiny-large"
    assert done["measures"]["votes"]["ties"] == 0
    assert "the judge tiny-large" in done["reasons"][0]


@pytest.mark.runtime
@pytest.mark.parametrize(("args", "said"), [
    (("tiny-huge",), "nobody serves tiny-huge"),
    (("tiny-large",), "the same weights"),
    (("tiny-large", "--against", "tiny-small", "--dataset", "no-such"), "no dataset is called 'no-such'"),
    (("tiny-large", "--against", "tiny-small", "--by", "taste"), "references, votes, judge"),
    (("tiny-large", "--against", "tiny-small", "--dataset", "none"), "nothing to ask"),
    (("tiny-large", "--against", "tiny-small", "--by", "judge"), "needs a judge"),
])
def test_what_cannot_be_evaluated_is_refused_with_what_could(cli, args, said) -> None:
    assert said in cli.run("eval", *args, status=2).stderr


@pytest.mark.runtime
def test_a_server_that_is_gone_is_said_and_nothing_is_decided(cli, swarm, llamacpp_bin) -> None:
    swarm[1].kill()
    try:
        done = cli.run("eval", "tiny-large", "--against", "tiny-small", "--limit", "5", status=1)
    finally:
        swarm[1].start()
    assert "h1" in done.stderr
    assert "no server of this release is left" in done.stderr
    assert not list(cli.paths.data.glob("evaluations/*/*/report.json"))


def test_text_that_could_break_a_page_is_shown_as_text() -> None:
    row = {"old": 0.1, "new": 0.2, "mean": 0.1, "low": -0.1, "high": 0.3, "prompts": 2, "groups": 2}
    found = {"model": "<m>", "new": {"name": "a|b", "digest": "1" * 64}, "decision": "keep",
             "reasons": ["<r>"],
             "old": {"name": "old", "digest": "2" * 64}, "at": "now", "measure": "f1", "unfinished": {},
             "style": {"temperature": None, "samples": 1, "max_tokens": 9},
             "speed": {"old": None, "new": None},
             "served": {}, "measures": {"references": row, "exact": None, "capability": None, "votes": None,
                                        "judge": None},
             "examples": [{"prompt": "<script>|\n", "reference": None, "old": "\x1b[2J", "new": "ok"}]}
    assert "<script>" not in pages.page(found)
    text = pages.markdown(found)
    assert "\x1b" not in text
    assert "| <script>\\| |" in text

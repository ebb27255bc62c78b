"""Metrics: counted from the journal once, whoever made the exchange, and scraped by a real Prometheus."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
from prometheus_server import exposed, prometheus, promtool, scraping
from recorded import comparison, exchange, paths_under, rating
from running import Cli

from swarmctl.exchange import Attempt, Timings
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, write_fleet
from swarmctl.learning.topics import Clustered, Topic
from swarmctl.ledger import journal
from swarmctl.ledger.topic_store import Placed, State, prompt_key, write_state
from swarmctl.monitor.catalogue import CATALOGUE
from swarmctl.monitor.counts import MOST, OTHER, Counts
from swarmctl.monitor.metrics import Metrics

TIMINGS = Timings(prompt_tokens=40, cached_tokens=10, prompt_seconds=0.5, completion_tokens=20,
                  decode_seconds=2.0, first_token_seconds=0.6, total_seconds=2.7)


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def write(paths, *rows):
    for row in rows:
        journal.append(paths.journal, row.to_record())


def samples(text: bytes) -> dict[str, float]:
    """Series → value."""
    found = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series] = float(value)
    return found


def summed(text: bytes, name: str) -> float:
    return sum(value for series, value in samples(text).items()
               if series == name or series.startswith(f"{name}{{"))


def test_with_nothing_there_the_exposition_is_small_and_right(paths):
    text = Metrics(paths).exposition()
    assert samples(text)["swarmctl_rounds_waiting"] == 0
    assert 'swarmctl_build_info{version="' in text.decode()


def test_every_exchange_is_counted_once_whoever_exposes_it(paths):
    write(paths, exchange(1), exchange(2))
    first, second = Metrics(paths), Metrics(paths)
    assert summed(first.exposition(), "swarmctl_exchanges_total") == 2
    write(paths, exchange(3))
    assert summed(first.exposition(), "swarmctl_exchanges_total") == 3
    assert summed(first.exposition(), "swarmctl_exchanges_total") == 3
    assert summed(second.exposition(), "swarmctl_exchanges_total") == 3


def test_a_restart_goes_on_where_the_last_process_stopped(paths):
    write(paths, exchange(1))
    before = Metrics(paths)
    before.exposition()
    before.close()
    write(paths, exchange(2))
    kept = json.loads((paths.state / "metrics.json").read_text())
    assert summed(Metrics(paths).exposition(), "swarmctl_exchanges_total") == 2
    assert sum(kept["marks"].values()) > 0


def test_twenty_writers_and_two_readers_lose_and_repeat_nothing(paths):
    metrics = Metrics(paths)
    over = threading.Event()

    def scrape() -> None:
        while not over.is_set():
            metrics.exposition()

    readers = [threading.Thread(target=scrape, daemon=True) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(paths, *(exchange(100 * n + i) for i in range(5))),
                                daemon=True) for n in range(20)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join(60)
    over.set()
    for thread in readers:
        thread.join(60)
    assert summed(metrics.exposition(), "swarmctl_exchanges_total") == 100


def test_what_an_exchange_took_is_summed_and_spread(paths):
    write(paths, exchange(1, timings=TIMINGS), exchange(2, timings=TIMINGS))
    found = samples(Metrics(paths).exposition())
    served = '{host="spinoza",model="tiny-small"}'
    assert found[f"swarmctl_prompt_tokens_total{served}"] == 80
    assert found[f"swarmctl_cached_prompt_tokens_total{served}"] == 20
    assert found[f"swarmctl_completion_tokens_total{served}"] == 40
    assert found[f"swarmctl_decode_seconds_total{served}"] == 4.0
    assert found[f"swarmctl_answer_seconds_sum{served}"] == 5.4
    assert found['swarmctl_answer_seconds_bucket{host="spinoza",le="2.5",model="tiny-small"}'] == 0
    assert found['swarmctl_answer_seconds_bucket{host="spinoza",le="5.0",model="tiny-small"}'] == 2
    assert found['swarmctl_answer_seconds_bucket{host="spinoza",le="+Inf",model="tiny-small"}'] == 2
    assert found['swarmctl_failed_attempts_total{host="calisota",model="tiny-large"}'] == 2


def test_ratings_and_comparisons_become_approval_with_its_interval(paths):
    answers = [exchange(n) for n in range(5)]
    write(paths, *answers, *(rating(10 + n, of) for n, of in enumerate(answers[:4])),
          rating(20, answers[4], -1.0), comparison(30, answers[0], replace(answers[1], model="tiny-large")))
    found = samples(Metrics(paths).exposition())
    label = '{category="routine",model="tiny-small"}'
    assert found[f"swarmctl_approval_votes{label}"] == 5.5
    assert found[f"swarmctl_approval_ratio{label}"] == pytest.approx(4.5 / 5.5)
    low, high = (found[f"swarmctl_approval_{end}_ratio{label}"] for end in ("low", "high"))
    assert low < 4.5 / 5.5 < high
    assert found['swarmctl_ratings_total{category="routine",model="tiny-small",verdict="bad"}'] == 1
    assert found['swarmctl_comparisons_total{model="tiny-large",result="lost"}'] == 1


@pytest.mark.parametrize("garbage", [
    "", "{", "[]", '{"version": 1}', '{"version": 1, "marks": {"a": -1}}',
    '{"version": 1, "marks": {}, "counts": {"swarmctl_answer_seconds": [[[], []]]}}',
    '{"version": 1, "marks": {"2031-01.jsonl": 5}, "counts": {}}'])
def test_a_kept_file_that_is_garbage_or_of_another_journal_is_counted_anew(paths, garbage):
    write(paths, exchange(1))
    paths.state.mkdir(parents=True)
    (paths.state / "metrics.json").write_text(garbage)
    assert summed(Metrics(paths).exposition(), "swarmctl_exchanges_total") == 1


def test_lines_that_are_no_exchanges_do_no_harm(paths):
    write(paths, exchange(1))
    (file,) = paths.journal.glob("*.jsonl")
    odd = [{"kind": "exchange", "id": "x", "at": "2026-11-18T10:00:00Z"},
           {"kind": "exchange", "id": "y", "at": "2026-11-18T10:00:00Z", "attempts": [5], "timings": "soon"},
           {"kind": "exchange", "id": "z", "at": "2026-11-18T10:00:00Z", "host": ["a"], "model": "m\n{}\"",
            "timings": {"total_seconds": "long", "prompt_tokens": -4, "decode_seconds": True}},
           {"kind": "rating", "id": "r", "at": "2026-11-18T10:00:00Z", "exchange": 5}]
    with file.open("a") as out:
        out.write("".join(json.dumps(one) + "\n" for one in odd) + '{"kind": "exchange", "torn')
    text = Metrics(paths).exposition()
    assert summed(text, "swarmctl_exchanges_total") >= 2
    assert promtool("check", "metrics", stdin=text.decode()).returncode == 0


def test_what_a_gateway_tells_is_exposed(paths):
    metrics = Metrics(paths)
    with metrics.under_way("openai"):
        assert samples(metrics.exposition())['swarmctl_http_requests_in_flight{surface="openai"}'] == 1
    metrics.request("openai", 200, 0.3)
    metrics.rejected("ollama", "busy")
    found = samples(metrics.exposition())
    assert found['swarmctl_http_requests_in_flight{surface="openai"}'] == 0
    assert found['swarmctl_http_requests_total{status="200",surface="openai"}'] == 1
    assert found['swarmctl_http_request_seconds_bucket{le="0.5",surface="openai"}'] == 1
    assert found['swarmctl_rejections_total{reason="busy",surface="ollama"}'] == 1


def test_promtool_finds_nothing_to_say_about_names_and_units(paths):
    every = "".join(f"# HELP {one.name} {one.help}\n# TYPE {one.name} {one.kind}\n" + (
        f'{one.name}_bucket{{le="+Inf"}} 1\n{one.name}_sum 1\n{one.name}_count 1\n'
        if one.kind == "histogram" else f"{one.name} 1\n") for one in CATALOGUE)
    done = promtool("check", "metrics", stdin=every)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_real_prometheus_scrapes_it(paths, tmp_path):
    write(paths, exchange(1), exchange(2))
    metrics = Metrics(paths)
    with exposed(metrics.exposition) as port, prometheus(tmp_path, scraping(port)) as server:
        server.until("swarmctl_exchanges_total")
        assert server.value("sum(swarmctl_exchanges_total)") == 2
        assert server.value('up{job="swarmctl"}') == 1
        assert server.value("sum(swarmctl_answer_seconds_count)") == 2


def sorted_topics(paths, **topic_of):
    """Topics as `swarmctl topics` keeps them: question → topic."""
    topics = {name: Topic(number, name, (name,), (1.0, 0.0), 0.5, 9, "2026-11-23T00:00:00Z")
              for number, name in enumerate(sorted(set(topic_of.values())))}
    placed = {prompt_key(question.replace("_", " ")): Placed((1.0, 0.0), topics[name].id, 1.0, old=True)
              for question, name in topic_of.items()}
    write_state(paths, State("m", "d", "k", Clustered(0.0, len(placed), {}), tuple(topics.values()), 9,
                             placed=placed))


def test_approval_by_topic_follows_ratings_and_a_new_sorting(paths):
    asked = [exchange(n, question) for n, question in enumerate(("bake bread", "sort a list", "who won"))]
    write(paths, *asked, *(rating(10 + n, of, -1.0 if n else 1.0) for n, of in enumerate(asked)))
    metrics = Metrics(paths)
    assert summed(metrics.exposition(), "swarmctl_topic_approval_votes") == 0
    sorted_topics(paths, bake_bread="cooking", sort_a_list="python")
    found = samples(metrics.exposition())
    assert found['swarmctl_topic_approval_ratio{model="tiny-small",topic="cooking"}'] == 1
    assert found['swarmctl_topic_approval_ratio{model="tiny-small",topic="python"}'] == 0
    again = exchange(4, "bake  bread ")
    write(paths, again, rating(20, again, -1.0))
    found = samples(metrics.exposition())
    assert found['swarmctl_topic_approval_ratio{model="tiny-small",topic="cooking"}'] == 0.5
    assert found['swarmctl_topic_approval_votes{model="tiny-small",topic="cooking"}'] == 2
    sorted_topics(paths, bake_bread="kitchen")
    found = samples(metrics.exposition())
    assert found['swarmctl_topic_approval_votes{model="tiny-small",topic="kitchen"}'] == 2
    assert 'swarmctl_topic_approval_votes{model="tiny-small",topic="cooking"}' not in found


@pytest.mark.parametrize("garbage", ["", "{", '{"version": 1}',
                                     '{"version": 1, "topics": [], "assigned": 5}'])
def test_topics_that_cannot_be_read_are_left_out(paths, garbage):
    write(paths, exchange(1), rating(2, exchange(1)))
    paths.topics.mkdir(parents=True)
    (paths.topics / "topics.json").write_text(garbage)
    assert summed(Metrics(paths).exposition(), "swarmctl_topic_approval_votes") == 0


def test_energy_and_money_follow_from_the_watts_and_the_tariff_of_the_snapshot(paths):
    served = Served("llamacpp", "tiny-small", "tiny-small", "d" * 64, "t", 8090, 512, 1, 10, 10, "F16", 9.0,
                    8.0)
    entry = HostEntry("spinoza", "spinoza", "/data", 5.0, 12.0, 45.0, 0.30, "EUR", (), (served,))
    write_fleet(paths.fleet, Fleet("i", "s", "2026-11-23T00:00:00Z", None, 30.0, 60.0, (entry,)))
    write(paths, exchange(1, timings=TIMINGS), exchange(2, timings=TIMINGS, host="gone"))
    found = samples(Metrics(paths).exposition())
    joules = 2.5 * 45
    label = 'host="spinoza",model="tiny-small"'
    assert found[f"swarmctl_energy_joules_total{{{label}}}"] == joules
    money = found[f'swarmctl_energy_cost_total{{currency="EUR",{label}}}']
    assert money == pytest.approx(joules / 3.6e6 * 0.30)
    assert 'swarmctl_energy_joules_total{host="gone",model="tiny-small"}' not in found
    assert found[f'swarmctl_decode_tokens_per_second{{{label},server="tiny-small"}}'] == 8


def test_a_small_model_that_was_asked_first_and_a_wait_in_the_queue_are_counted(paths):
    route = {"prices": [], "cascade": {"decision": "escalate", "model": "tiny-small", "host": "spinoza"}}
    write(paths, exchange(1, route=route, timings=replace(TIMINGS, queue_seconds=3.0)),
          exchange(2, route={"cascade": {"decision": "direct", "why": "named"}}))
    found = samples(Metrics(paths).exposition())
    assert found['swarmctl_cascades_total{decision="escalate",model="tiny-small"}'] == 1
    assert summed(Metrics(paths).exposition(), "swarmctl_cascades_total") == 1
    assert found['swarmctl_queue_seconds_sum{host="spinoza",model="tiny-small"}'] == 3


def test_labels_stay_few_however_many_models_there_were(paths):
    counts = Counts()
    for number in range(MOST + 500):
        counts.add("swarmctl_prompt_tokens_total", ("host", f"model {number}"))
    assert len(counts.series("swarmctl_prompt_tokens_total")) == MOST + 1
    assert counts.series("swarmctl_prompt_tokens_total")[OTHER, OTHER] == [500]


def test_the_command_prints_them_and_replaces_a_file_in_one_go(paths, tmp_path):
    write(paths, exchange(1))
    cli = Cli(paths, tmp_path)
    assert summed(cli.run("metrics").stdout.encode(), "swarmctl_exchanges_total") == 1
    target = tmp_path / "node" / "swarmctl.prom"
    assert cli.run("metrics", "--no-hosts", "-o", str(target)).stdout == ""
    assert promtool("check", "metrics", stdin=target.read_text()).returncode == 0
    assert [file.name for file in target.parent.iterdir()] == ["swarmctl.prom"]
    refused = cli.run("metrics", "--no-hosts", "-o", "/proc/swarmctl.prom", status=1)
    assert "/proc/swarmctl.prom could not be written" in refused.stderr


def test_a_journal_that_cannot_be_read_is_an_error_and_no_traceback(paths, tmp_path):
    paths.journal.mkdir(parents=True)
    (paths.journal / "2026-11.jsonl").mkdir()
    done = Cli(paths, tmp_path).run("metrics", "--no-hosts", status=1)
    assert "cannot read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1}', b"null", b"7"])
def test_garbage_in_the_state_folder_costs_numbers_and_no_scrape(paths, garbage):
    served = Served("llamacpp", "big", "big", "d", "t", 1, 512, 1, 10, 10, "F16", 9.0, 8.0)
    entry = HostEntry("here", "local", "/tmp", 5.0, 12.0, 45.0, 0.30, "EUR", (), (served,))
    write_fleet(paths.fleet, Fleet("i", "s", "not a time", None, 30.0, 60.0, (entry,)))
    write(paths, exchange(1))
    for name in ("metrics.json", "scores.json", "down/here.json", "standing/here.json", "asleep/here.json",
                 "habits/here@big.json", "breakers/here@big.json", "queue/5-5", "slots/here@big/0"):
        file = paths.state / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(garbage)
    found = samples(Metrics(paths).exposition())
    assert found['swarmctl_decode_tokens_per_second{host="here",model="big",server="big"}'] == 8
    assert found['swarmctl_breaker_state{host="here",model="big",server="big",state="closed"}'] == 1
    assert found["swarmctl_queue_length"] == 0
    paths.fleet.write_bytes(garbage)
    assert summed(Metrics(paths).exposition(), "swarmctl_exchanges_total") == 1


def test_a_late_server_and_a_small_model_that_was_left_are_no_failures(paths):
    attempts = (Attempt("worlock", "tiny-large", "hedged: no token after 9.0 s", hedged=True),
                Attempt("spinoza", "tiny-small", "20% likely good"),
                Attempt("calisota", "tiny-large", "refused"))
    route = {"cascade": {"decision": "escalate", "model": "tiny-small", "host": "spinoza"}, "explored": True}
    write(paths, exchange(1, attempts=attempts, route=route, model="tiny-large"))
    found = samples(Metrics(paths).exposition())
    assert found['swarmctl_hedges_total{host="worlock",model="tiny-large"}'] == 1
    assert found['swarmctl_explorations_total{host="spinoza",model="tiny-large"}'] == 1
    failed = {series for series in found if series.startswith("swarmctl_failed_attempts_total")}
    assert failed == {'swarmctl_failed_attempts_total{host="calisota",model="tiny-large"}'}

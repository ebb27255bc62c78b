"""Metrics: counted from the journal once, whoever made the exchange, and scraped by a real Prometheus."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_server import exposed, prometheus, promtool, scraping
from recorded import comparison, exchange, paths_under, rating

from swarmctl.exchange import Timings
from swarmctl.ledger import journal
from swarmctl.monitor.catalogue import CATALOGUE
from swarmctl.monitor.metrics import Metrics

ROOT = Path(__file__).parent.parent
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

"""Alert rules: promtool finds them right, and each fires when it should and only then."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_server import promtool

from swarmctl.cli.app import COMMANDS
from swarmctl.monitor.alerts import ALERTS, rules
from swarmctl.monitor.catalogue import BY_NAME

WRITTEN = Path(__file__).parent.parent / "docs" / "monitoring" / "alerts.yml"
SERVER = 'host="worlock",server="big",model="big"'
UP, DOWN = 'swarmctl_host_up{host="worlock"}', "0x30"
BIG = {"host": "worlock", "server": "big", "model": "big"}
DAY = "1+0x1600"

#: alert → (series in promtool's notation, one value a minute; minutes; labels that it fires with; summary)
CASES = {
    "SwarmctlNotScraped": (
        {'up{job="swarmctl",instance="here:1"}': "0x10"}, 5, {"job": "swarmctl", "instance": "here:1"},
        "swarmctl's metrics at here:1 do not answer"),
    "SwarmctlHostDown": ({UP: DOWN, 'swarmctl_host_intermittent{host="worlock"}': "0x30"}, 10,
                         {"host": "worlock"}, "worlock does not answer"),
    "SwarmctlServerDown": ({UP: "1x30", f"swarmctl_server_up{{{SERVER}}}": "0x30"}, 10, BIG,
                           "big on worlock does not answer, and its host does"),
    "SwarmctlServerSilent": (
        {f"swarmctl_server_generates{{{SERVER}}}": "0x30", f"swarmctl_server_up{{{SERVER}}}": "1x30"}, 10,
        BIG, "big on worlock answers and makes no token"),
    "SwarmctlQuestionsFail": (
        {'swarmctl_exchanges_total{finish="error"}': "0+1x30",
         'swarmctl_exchanges_total{finish="stop"}': "0+3x30"}, 20, {}, "25% of the questions fail"),
    "SwarmctlFailovers": (
        {'swarmctl_failed_attempts_total{host="worlock",model="big"}': "0+1x30"}, 20,
        {"host": "worlock", "model": "big"},
        "big on worlock failed 15 questions in 15 minutes; others answered them"),
    "SwarmctlBreakerOpen": (
        {f'swarmctl_breaker_state{{{SERVER},state="open"}}': "1x30"}, 15, {**BIG, "state": "open"},
        "big on worlock keeps failing, and is left alone"),
    "SwarmctlSlowFirstToken": (
        {'swarmctl_first_token_seconds_bucket{le="10.0"}': "0x60",
         'swarmctl_first_token_seconds_bucket{le="30.0"}': "0+6x60",
         'swarmctl_first_token_seconds_bucket{le="+Inf"}': "0+6x60"}, 40, {},
        "one answer in twenty begins after more than 29s"),
    "SwarmctlQueueLong": ({"swarmctl_queue_length": "3x30"}, 12, {},
                          "questions have been waiting for free slots for 10 minutes"),
    "SwarmctlTurningAway": ({'swarmctl_rejections_total{surface="openai",reason="busy"}': "0+1x30"}, 15, {},
                            "the queue is full, and the gateway turns questions away"),
    "SwarmctlSlotsFull": ({f"swarmctl_server_slots{{{SERVER}}}": "4x60",
                           f"swarmctl_server_slots_busy{{{SERVER}}}": "4x60"}, 40, {},
                          "100% of all slots are busy"),
    "SwarmctlDiskNearlyFull": ({'swarmctl_host_disk_bytes{host="worlock"}': "1000x30",
                                'swarmctl_host_disk_free_bytes{host="worlock"}': "50x30"}, 15,
                               {"host": "worlock"}, "worlock has 5% of its data disk left"),
    "SwarmctlDiskFull": ({'swarmctl_host_disk_bytes{host="worlock"}': "1000x30",
                          'swarmctl_host_disk_free_bytes{host="worlock"}': "20x30"}, 7, {"host": "worlock"},
                         "worlock has 2% of its data disk left"),
    "SwarmctlJournalDiskFull": (
        {"swarmctl_data_disk_free_bytes": "104857600x30"}, 10, {},
        "the journal's disk has 100MiB left; answers that cannot be recorded fail"),
    "SwarmctlMemoryLow": ({'swarmctl_host_memory_bytes{host="worlock"}': "1000x30",
                           'swarmctl_host_memory_available_bytes{host="worlock"}': "30x30"}, 15,
                          {"host": "worlock"}, "worlock has 3% of its memory left"),
    "SwarmctlGpuLost": ({'swarmctl_host_gpus{host="worlock"}': "2x10 1x20"}, 25, {"host": "worlock"},
                        "GPUs of worlock that answer: 1, and there were more within a day"),
    "SwarmctlGpuHot": (
        {'swarmctl_gpu_temperature_celsius{host="worlock",gpu="0",name="RTX 3080"}': "91x30"}, 15,
        {"host": "worlock", "gpu": "0", "name": "RTX 3080"}, "GPU 0 of worlock is at 91 °C"),
    "SwarmctlDisliked": (
        {'swarmctl_approval_high_ratio{model="big",category="code"}': "0.4x90",
         'swarmctl_approval_votes{model="big",category="code"}': "40x90"}, 80,
        {"model": "big", "category": "code"},
        "big is surely disliked in code: at most 40% of its answers are good"),
    "SwarmctlWaitsForSignature": ({"swarmctl_rounds_waiting": DAY}, 1500, {},
                                  "rounds of improvement that wait for a signature: 1"),
    "SwarmctlHostForgotten": ({'swarmctl_host_aside{host="worlock",state="cordoned"}': DAY}, 1500,
                              {"host": "worlock", "state": "cordoned"},
                              "worlock has been cordoned for a day"),
}
#: the same, where nothing must fire
QUIET = {
    "SwarmctlHostDown": [
        {UP: DOWN, 'swarmctl_host_intermittent{host="worlock"}': "1x30"},
        {UP: DOWN, 'swarmctl_host_asleep{host="worlock"}': "1x30"},
        {UP: "0 0 0 1 1 1 0 0 0 1 1 1 0 0 0"}],
    "SwarmctlServerDown": [{UP: DOWN, f"swarmctl_server_up{{{SERVER}}}": "0x30"}],
    "SwarmctlQuestionsFail": [{'swarmctl_exchanges_total{finish="error"}': "0+1x30",
                               'swarmctl_exchanges_total{finish="stop"}': "0+30x30"}],
    "SwarmctlGpuLost": [{'swarmctl_host_gpus{host="worlock"}': "2x30"}],
    "SwarmctlQueueLong": [{"swarmctl_queue_length": "0 9 0 0 9 0 0 9 0 0 9 0 0 9"}],
    "SwarmctlDisliked": [{'swarmctl_approval_high_ratio{model="big",category="code"}': "0.4x90",
                          'swarmctl_approval_votes{model="big",category="code"}': "4x90"}],
    "SwarmctlDiskFull": [{'swarmctl_host_disk_bytes{host="worlock"}': "1000x30",
                          'swarmctl_host_disk_free_bytes{host="worlock"}': "50x30"}],
}


def test_the_file_is_what_the_command_writes():
    again = "swarmctl metrics alerts -o docs/monitoring/alerts.yml"
    assert WRITTEN.read_text(encoding="utf-8") == rules(), again


def test_promtool_takes_the_rules():
    done = promtool("check", "rules", str(WRITTEN))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_every_alert_has_a_case():
    assert CASES.keys() == {alert.name for alert in ALERTS}


def test_alerts_ask_for_metrics_that_there_are_and_name_commands_that_there_are():
    for alert in ALERTS:
        names = set(re.findall(r"\bswarmctl_[a-z_]+", alert.expr))
        assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} <= BY_NAME.keys(), alert.name
        assert set(re.findall(r"\bswarmctl ([a-z]+)", alert.mend)) <= set(COMMANDS), alert.name


def _test(alert, series, minutes, fires):
    return {"interval": "1m", "input_series": [{"series": name, "values": values}
                                               for name, values in series.items()],
            "alert_rule_test": [{"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": fires}]}


def _expected(alert, labels, summary):
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], alert.mend)
    return {"exp_labels": {**labels, "severity": alert.severity},
            "exp_annotations": {"summary": summary, "description": text}}


def _run(tmp_path, *tests):
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(WRITTEN)], "evaluation_interval": "1m",
                                    "tests": tests}, allow_unicode=True))
    return promtool("test", "rules", str(file))


def test_each_fires_when_it_should(tmp_path):
    by_name = {alert.name: alert for alert in ALERTS}
    done = _run(tmp_path, *(_test(name, series, minutes, [_expected(by_name[name], labels, summary)])
                            for name, (series, minutes, labels, summary) in CASES.items()))
    assert done.returncode == 0, done.stdout + done.stderr


def test_none_fires_for_what_is_in_order_or_has_just_begun(tmp_path):
    begun = [_test(alert.name, CASES[alert.name][0], 0, []) for alert in ALERTS]
    fine = [_test(name, series, CASES[name][1], []) for name, several in QUIET.items() for series in several]
    done = _run(tmp_path, *begun, *fine)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_says_something_else_would_be_found(tmp_path):
    series, minutes, labels, _ = CASES["SwarmctlHostDown"]
    wrong = _expected(next(one for one in ALERTS if one.name == "SwarmctlHostDown"), labels, "all is well")
    assert _run(tmp_path, _test("SwarmctlHostDown", series, minutes, [wrong])).returncode != 0

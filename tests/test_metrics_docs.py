"""docs/monitoring.md says what the code exposes, and its examples are right."""

from __future__ import annotations

from pathlib import Path

import yaml
from prometheus_server import promtool

from swarmctl.monitor import alerts, catalogue
from swarmctl.verbs.serve import PORT

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "monitoring.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_code():
    assert catalogue.reference() in PAGE
    assert alerts.reference() in PAGE


def test_every_metric_is_listed_once_and_has_few_labels():
    names = [one.name for one in catalogue.CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(len(one.labels) <= 5 for one in catalogue.CATALOGUE)
    assert all(one.buckets == tuple(sorted(one.buckets)) for one in catalogue.CATALOGUE)


def test_the_example_configuration_is_right_and_asks_where_the_gateway_listens(tmp_path):
    file = DOCS / "monitoring" / "prometheus.yml"
    done = promtool("check", "config", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = yaml.safe_load(file.read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"127.0.0.1:{PORT}"]
    assert 'job="swarmctl"' in alerts.rules()


def test_the_picture_of_the_page_needs_nothing_from_the_web():
    drawn = (DOCS / "watch.svg").read_text(encoding="utf-8")
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")

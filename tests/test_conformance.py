"""The table in docs/apis.md is the one that the tests of the clients make; the page knows every path."""

from __future__ import annotations

import re

from conformance import DOCS, TRIED, table, written

from swarmctl.gateway.app import surfaces


def test_the_table_of_clients_is_up_to_date():
    docs = DOCS.read_text(encoding="utf-8")
    assert docs == written(docs), "python tests/conformance.py writes it anew"
    assert len(TRIED) == table().count("✓")


def test_every_client_s_main_paths_are_in_the_docs():
    docs = DOCS.read_text(encoding="utf-8")
    for surface in surfaces():
        for route in (*surface.talks, *surface.embeds):
            last = re.sub(r"^/(v1|api)/", "", route.path)
            assert last in docs, route.path

"""Looking at a real Ollama: SWARMCTL_TEST_OLLAMA, as in test_ollama."""

from __future__ import annotations

import json
import time

from running import ask_json
from test_ollama import pytestmark, server, swarm  # noqa: F401  fixtures, and when to skip

from swarmctl.monitor.hosts import HostPoller


def test_looking_neither_loads_a_model_nor_keeps_one_loaded(swarm, server):  # noqa: F811
    def until():
        loaded = json.loads(server.call("/api/ps"))["models"]
        return {one["name"].partition(":")[0]: one["expires_at"] for one in loaded}

    for name in ("small", "large"):
        server.unload(name)
    poller = HostPoller(swarm.paths, tokens_every=0.01)
    try:
        assert [one.loaded for host in poller.once() for one in host.servers] == [False, False]
        assert until() == {}
        ask_json(swarm, "hello", "-m", "tiny-small")
        before = until()
        assert before.keys() == {"tiny-small"}
        time.sleep(1.1)
        looks = {one.served.model: one for host in poller.once() for one in host.servers}
        small = looks["tiny-small"]
        assert (small.up, small.loaded, small.generates) == (True, True, None)
        assert not looks["tiny-large"].loaded
        assert until() == before
    finally:
        poller.stop()

"""Files that become garbage while the gateway runs, and what comes back once they are mended."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from gateways import host, llama_server, served, serving, swarm_of
from test_serve import FRANCE
from waiting import until

from swarmctl.gateway.keys import keys_file

pytestmark = pytest.mark.runtime
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def gateway(llamacpp_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("garbage")
    with llama_server(folder, llamacpp_bin, "small", "-c", 1024) as port:
        (folder / "home").mkdir()
        with swarm_of(folder / "home", host("spinoza", served("llamacpp", "tiny-small", port))) as cli, \
                serving(cli) as found:
            yield found
            assert "Traceback" not in "".join(found.said)


def status(gateway, **headers) -> int:
    body = {"messages": FRANCE, "temperature": 0}
    return httpx.post(gateway.url + CHAT, json=body, headers=headers, timeout=120).status_code


@pytest.mark.parametrize("garbage", [b"\x00\xff{{garbage: [", b""])
def test_an_inventory_that_became_garbage_or_is_gone_changes_nothing(gateway, garbage):
    inventory = gateway.cli.paths.inventory
    kept = inventory.read_bytes()
    try:
        inventory.write_bytes(garbage)
        assert status(gateway) == 200
        inventory.unlink()
        assert status(gateway) == 200
    finally:
        inventory.write_bytes(kept)


@pytest.mark.parametrize("garbage", [b'{"version', b"\xff\xfe", b"[]", b""])
def test_a_snapshot_that_became_garbage_is_said_and_the_gateway_serves_on(gateway, garbage):
    fleet = gateway.cli.paths.fleet
    kept = fleet.read_bytes()
    assert status(gateway) == 200
    before = len(gateway.said)
    try:
        fleet.write_bytes(garbage)
        assert status(gateway) == 200
        until(lambda: "serves on as it was before" in "".join(gateway.said[before:]))
        assert status(gateway) == 200
    finally:
        fleet.write_bytes(kept)
    assert status(gateway) == 200


def test_a_host_that_is_taken_out_is_asked_no_more_and_again_once_it_is_back(gateway):
    fleet = gateway.cli.paths.fleet
    kept = fleet.read_bytes()
    try:
        fleet.write_text(json.dumps({**json.loads(kept), "hosts": []}))
        until(lambda: status(gateway) == 503)
    finally:
        fleet.write_bytes(kept)
    until(lambda: status(gateway) == 200)


@pytest.mark.parametrize("garbage", [b"\xff\x00garbage", b"[]", b'{"version": 1, "keys": [{"name": 5}]}'])
def test_keys_that_became_garbage_let_nobody_in_until_they_are_mended(gateway, garbage):
    secret = gateway.cli.run("serve", "key", "add", "somebody").stdout.strip()
    file, bearer = keys_file(gateway.cli.paths), {"authorization": f"Bearer {secret}"}
    kept = file.read_bytes()
    try:
        until(lambda: status(gateway) == 401)
        assert status(gateway, **bearer) == 200
        file.write_bytes(garbage)
        until(lambda: status(gateway, **bearer) == 503)
        assert status(gateway) == 503
        file.write_bytes(kept)
        until(lambda: status(gateway, **bearer) == 200)
    finally:
        file.unlink()
    until(lambda: status(gateway) == 200)


def test_a_client_that_closes_its_sending_side_is_gone_and_harms_nobody(gateway):
    body = json.dumps({"messages": FRANCE, "stream": True}).encode()
    where = httpx.URL(gateway.url)
    with socket.create_connection((where.host, where.port), timeout=60) as half:
        half.sendall(b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s"
                     % (CHAT.encode(), len(body), body))
        half.shutdown(socket.SHUT_WR)
        while half.recv(65536):
            pass
    assert status(gateway) == 200

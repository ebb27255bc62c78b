"""More connections than the gateway takes: who says nothing makes room for who asks."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
from gateways import host, served, swarm_of
from test_gateway_faults import CHAT, Raw, _inside, answers
from test_serve import FRANCE

from swarmctl.gateway.bounds import Bounds

MOST = 8
#: nobody's head is waited for so long that its end could be what made room
PATIENT = Bounds(connections=MOST, head=600.0)


async def _crowd(cli) -> None:
    async with _inside(cli, PATIENT) as (port, _), contextlib.AsyncExitStack() as ended:
        crowd = []
        for _ in range(5 * MOST):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            ended.callback(writer.close)
            crowd.append(reader)
        async with httpx.AsyncClient(timeout=120) as client:
            for _ in range(3):
                reply = await client.post(f"http://127.0.0.1:{port}{CHAT}", json={"messages": FRANCE})
                assert reply.status_code == 200
            for reader in crowd[:4 * MOST]:
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(1), 60) == b"", "the oldest made room"
            for _ in range(5 * MOST):  # a kept connection that has spoken outlives those that never did
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                ended.callback(writer.close)
            reply = await client.post(f"http://127.0.0.1:{port}{CHAT}", json={"messages": FRANCE})
            assert reply.status_code == 200


def test_who_says_nothing_makes_room_for_who_asks(tmp_path):
    server = Raw(answers)
    with contextlib.closing(server), swarm_of(tmp_path, host("good", served("llamacpp", "tiny-small",
                                                                            server.port))) as cli:
        asyncio.run(_crowd(cli))

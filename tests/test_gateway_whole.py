"""All that the ask path can do to a question, at once and through the gateway: small models asked first,
questions spent on learning, second requests, hosts that go away. Programs ask a real swarm over real SSH
tunnels, many at a time; each is answered or refused, and recorded once, and nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from gateways import serving
from running import Cli
from test_cascade import curve
from waiting import until

from swarmctl.dispatch.marks import mark_down, read_mark
from swarmctl.dispatch.queue import length
from swarmctl.dispatch.shadow import AT_ONCE as AT_ONCE_IN_SHADOW
from swarmctl.dispatch.shadow import SHADOW_VIA, ask_in_shadow
from swarmctl.dispatch.slots import claim, claimed
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.fleet.tunnels import close_tunnel
from swarmctl.ledger.heard import NAMES
from swarmctl.paths import Paths
from swarmctl.routing.confidence import STAGES

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(600)]

#: How many are asked, how many at a time, and after how many a host goes away.
ASKED, AT_ONCE, CUT = 240, 8, 40
PROMPTS = ("What is the capital of France?", "What is 23 + 45?", "Spell the word apple.",
           "What is the capital of Spain?", "Say something about pears.")
#: Refusals that leave no exchange: nobody was asked.
TURNED_AWAY = 429


@dataclass(frozen=True)
class Ended:
    """How one request ended for its client: with an answer, or with what the API calls an error."""

    identity: str | None
    text: str = ""
    error: openai.APIError | None = None


@pytest.fixture(scope="module")
def swarm(make_lab, llamacpp_bin):
    """A lab brought up where energy is dear, so that the small model is worth asking first, and much is spent
    on learning."""
    lab = make_lab("loopback", cache=Paths.from_environ(os.environ).cache)
    text = lab.paths.inventory.read_text().replace("price: 0.30", "price: 1000")
    lab.paths.inventory.write_text(f"{text}routing: {{explore: 0.2, queue: 256}}\n")
    cli = Cli(lab.paths, lab.home)
    cli.environ.update(lab.environ)
    cli.lab = lab
    cli.run("up", limit=500)
    cli.candidates = make_swarm(cli.paths, read_fleet(cli.paths.fleet)).candidates
    yield cli
    cli.run("down")
    lab.stop()
    assert not list(lab.paths.runtime.rglob("*.sock"))


def test_hundreds_of_questions_are_each_answered_or_refused_and_recorded_once(swarm):
    _trust_the_small_model_half(swarm)
    with serving(swarm) as gateway, \
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=240) as client:
        _rate(gateway, client)
        before = {row["id"] for row in swarm.rows() if row["kind"] == "exchange"}
        files, threads = _open_files(gateway.process.pid), _threads(gateway.process.pid)
        ended = _all(client, swarm)
        until(lambda: not any(claimed(swarm.paths, one, one.parallel) for one in swarm.candidates), 120)
        assert length(swarm.paths) == 0
        until(lambda: _open_files(gateway.process.pid) <= files + 4 * AT_ONCE)
        until(lambda: _threads(gateway.process.pid) <= threads + 2 * AT_ONCE)
    rows = [row for row in swarm.rows() if row["kind"] == "exchange" and row["id"] not in before]
    _each_once(ended, [row for row in rows if row["via"] == "serve"])
    _everything_happened(rows)


def test_a_host_that_is_back_is_used_again_long_before_its_mark_runs_out(swarm):
    host = swarm.lab.host("worlock")
    with serving(swarm) as gateway:
        def ask() -> httpx.Response:
            return httpx.post(f"{gateway.url}/v1/chat/completions", timeout=120, json={
                "model": "auto", "messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 2})

        host.kill_sshd()
        close_tunnel(swarm.paths, "worlock")
        for _ in range(6):
            mark = mark_down(swarm.paths, "worlock", "no answer", time.time())
        assert mark.until - time.time() > 300
        for _ in range(2):
            _long_ago(swarm)
            assert ask().headers["x-swarmctl-host"] != "worlock"
        host.start()

        def back() -> bool:
            _long_ago(swarm)
            assert ask().status_code == 200
            return read_mark(swarm.paths, "worlock") is None

        until(back, 120)


def test_shadows_do_not_pile_up_while_the_swarm_is_busy(swarm, monkeypatch):
    for name, value in swarm.lab.environ.items():
        monkeypatch.setenv(name, value)
    found = make_swarm(swarm.paths, read_fleet(swarm.paths.fleet))
    (small,) = (one for one in found.candidates if one.model == "tiny-small")
    asked = json.loads(swarm.run("ask", "--json", PROMPTS[0]).stdout)["id"]
    with claim(swarm.paths, small, small.parallel):
        assert [ask_in_shadow(found, asked, small) for _ in range(AT_ONCE_IN_SHADOW + 2)] == \
            [*[True] * AT_ONCE_IN_SHADOW, False, False]
        until(lambda: length(swarm.paths) == AT_ONCE_IN_SHADOW)
    until(lambda: sum(row.get("parent") == asked for row in swarm.rows()) == AT_ONCE_IN_SHADOW)
    until(lambda: ask_in_shadow(found, asked, small))
    until(lambda: sum(row.get("parent") == asked for row in swarm.rows()) == AT_ONCE_IN_SHADOW + 1)


def _long_ago(swarm: Cli) -> None:
    """The last look at worlock was a while ago."""
    file = swarm.paths.state / "down" / "worlock.look"
    file.touch()
    os.utime(file, (0, 0))


def _trust_the_small_model_half(swarm: Cli) -> None:
    """What ratings would have taught of how sure the small model is of itself."""
    (digest,) = {one.digest for one in swarm.candidates if one.model == "tiny-small"}
    folder = swarm.paths.data / "routing"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "confidence.json").write_text(json.dumps(
        {"names": NAMES, "stages": STAGES, "pooled": None, "models": {digest: {"": curve(0.0)}}}))


def _rate(gateway, client: openai.OpenAI) -> None:
    """A few ratings, few enough that there is something to be learned."""
    for model, rating in (("tiny-small", "up"), ("tiny-small", "down"), ("tiny-small", "down"),
                          ("tiny-large", "up"), ("tiny-large", "up"), ("tiny-large", "down")):
        answer = _chat(client, model, 0)
        word = {"exchange": answer.id, "rating": rating}
        assert httpx.post(f"{gateway.url}/v1/feedback", json=word, timeout=60).status_code == 200


def _all(client: openai.OpenAI, swarm: Cli) -> list[Ended]:
    """Ask them all, and take a host away in the middle of it."""
    host = swarm.lab.host("calisota")
    done: list[Ended] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asking = [pool.submit(lambda number=number: done.append(_one(client, number)))
                  for number in range(ASKED)]
        until(lambda: len(done) >= CUT, 240)
        try:
            until(lambda: _stopped_at_work(swarm, host), 120)
            host.cut()
            for one in asking:
                one.result(300)
        finally:
            host.mend()
    return done


def _stopped_at_work(swarm: Cli, host) -> bool:
    """Stop its server; whether it was giving an answer, which will now never come. Otherwise it goes on."""
    (file,) = (host.data_dir / "servers").glob("*/server.pid")
    (served,) = (one for one in swarm.candidates if one.host == host.name)
    os.kill(int(file.read_text()), signal.SIGSTOP)
    time.sleep(1.0)  # what it had said is heard
    if claimed(swarm.paths, served, served.parallel):
        return True
    os.kill(int(file.read_text()), signal.SIGCONT)
    return False


def _one(client: openai.OpenAI, number: int) -> Ended:
    identity = None
    try:
        if number % 2:
            answer = _chat(client, "auto", number)
            return Ended(answer.id, answer.choices[0].message.content)
        text = []
        for piece in _chat(client, ("auto", "tiny-large", "auto:best")[number // 2 % 3], number, stream=True):
            identity = piece.id
            text += [one.delta.content or "" for one in piece.choices]
        return Ended(identity, "".join(text))
    except openai.APIError as exc:
        return Ended(identity, error=exc)


def _chat(client: openai.OpenAI, model: str, number: int, **more: object):
    asked = [{"role": "user", "content": f"{PROMPTS[number % len(PROMPTS)]}"}]
    return client.chat.completions.create(model=model, messages=asked, max_tokens=24, **more)


def _each_once(ended: list[Ended], rows: list[dict]) -> None:
    assert len(ended) == ASKED
    found = {row["id"].removeprefix("chatcmpl-"): row for row in rows}
    assert len(found) == len(rows), "none is recorded twice"
    for one in ended:
        if one.error is None:
            assert found[_bare(one.identity)]["answer"] == one.text
        else:
            assert one.error.body["message"], "in the API's own shape"
    turned_away = sum(getattr(one.error, "status_code", 0) == TURNED_AWAY for one in ended)
    assert len(rows) == ASKED - turned_away, "none is missing"
    answered = sum(one.error is None for one in ended)
    assert answered > ASKED * 0.8, Counter(str(one.error) for one in ended)


def _bare(identity: str) -> str:
    return identity.removeprefix("chatcmpl-")


def _everything_happened(rows: list[dict]) -> None:
    """The test saw what it is about."""
    decisions = Counter((row["route"].get("cascade") or {}).get("decision") for row in rows)
    assert decisions["commit"] + decisions["escalate"] > 0, decisions
    assert any(row["route"].get("explored") or row["via"] == SHADOW_VIA for row in rows)
    gone = [attempt for row in rows for attempt in row["attempts"] if attempt["host"] == "calisota"]
    assert gone, "it failed, or was late and somebody else was asked beside it"


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))

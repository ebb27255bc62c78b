"""Load, for real: many terminals and few slots, servers that refuse, hang and are slow. llama-servers with
the shipped models, and the command as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from recorded import paths_under
from running import Cli, ask_json, slowed
from test_ask import LONG, Server
from test_ollama import FOLDER
from test_ollama import Server as OllamaServer
from waiting import until

from swarmctl.dispatch.admission import take
from swarmctl.dispatch.hedge import Race, rivals
from swarmctl.dispatch.question import Asked, put
from swarmctl.dispatch.queue import length
from swarmctl.dispatch.slots import claimed
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.errors import ServerFull, ServerUnavailable
from swarmctl.exchange import ChatRequest, Chunk, Message
from swarmctl.fleet.snapshot import Fleet, read_fleet, write_fleet
from swarmctl.routing.cost import Question, Standing, price
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.llamacpp import LlamaCpp
from swarmctl.runtimes.ollama import Ollama

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(240)]

CAPITAL = "What is the capital of France?"
PLAIN = Policy(explore=0.0, cascade=False, hedge=False)


@pytest.fixture(scope="module")
def servers(llamacpp_bin):
    made = {"spinoza": Server(llamacpp_bin, "large", 512), "worlock": Server(llamacpp_bin, "large", 512, 2)}
    yield made
    for server in made.values():
        server.kill()


@pytest.fixture
def swarm(servers, tmp_path):
    """A function: a SWARMCTL_HOME whose snapshot holds the named servers, and others."""
    def make(*names: str, policy: Policy = PLAIN, more=()) -> Cli:
        cli = Cli(paths_under(tmp_path), tmp_path)
        inventory = cli.paths.inventory
        inventory.parent.mkdir(parents=True, exist_ok=True)
        inventory.write_text("version: 1\n")
        hosts = (*more, *(servers[name].entry(name, 45.0) for name in names))
        write_fleet(cli.paths.fleet, Fleet(str(inventory), sha256(inventory.read_bytes()).hexdigest(),
                                           "2026-01-01T00:00:00Z", None, 30.0, 60.0, hosts, policy))
        return cli

    yield make
    settle(servers)


def settle(servers) -> None:
    for server in servers.values():
        until(lambda server=server: busy(server) == 0)


def busy(server: Server) -> int:
    return LlamaCpp().load(Endpoint(port=server.port), timeout=10).busy


@contextlib.contextmanager
def taken(cli: Cli, server: Server, host: str, times: int = 1):
    """A question that holds a slot until the block ends."""
    with slowed(server.process.pid):
        holding = [cli.start("ask", "-H", host, "What is 23 + 45?", "--schema", json.dumps(LONG))
                   for _ in range(times)]
        for one in holding:
            assert one.stdout.read(2)
        try:
            yield holding
        finally:
            for one in holding:
                one.kill()
                one.communicate()


def test_many_terminals_share_one_slot_and_all_are_answered(swarm):
    cli = swarm("spinoza")
    asking = [cli.start("ask", CAPITAL, "--temperature", "0") for _ in range(6)]
    for one in asking:
        out, err = one.communicate(timeout=120)
        assert one.returncode == 0, err
        assert b"Paris" in out
    assert len(cli.rows()) == 6
    assert list((cli.paths.state / "queue").glob("*")) == []


def test_who_waits_says_so_once_and_goes_on_when_the_holder_is_killed(swarm, servers):
    cli = swarm("spinoza")
    with taken(cli, servers["spinoza"], "spinoza") as (holder,):
        waiting = cli.start("ask", CAPITAL, "--temperature", "0")
        until(lambda: length(cli.paths) == 1)
        time.sleep(1.0)
        assert waiting.poll() is None
        holder.kill()
        holder.wait()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert b"Paris" in out
    assert err.count(b"every slot is taken; waiting, next in line, about") == 1
    (row,) = (row for row in cli.rows() if row["messages"][-1]["content"] == CAPITAL)
    assert row["timings"]["queue_seconds"] > 0.5
    assert row["timings"]["total_seconds"] < row["timings"]["queue_seconds"] + 30


def test_the_important_are_answered_first_and_equals_in_their_order(swarm, servers):
    cli = swarm("spinoza")
    server = servers["spinoza"]
    with slowed(server.process.pid):  # an answer takes far longer than to write down the one before
        with taken(cli, server, "spinoza"):
            asking = []
            for name, priority in (("first", 0), ("second", 0), ("urgent", 5)):
                asking.append(cli.start("ask", f"Spell {name}", f"--priority={priority}",
                                        "--max-tokens", "9"))
                until(lambda: length(cli.paths) == len(asking))
        for one in asking:
            one.communicate(timeout=120)
    said = [row["messages"][-1]["content"] for row in cli.rows()]
    assert [word for word in said if word.startswith("Spell")] == ["Spell urgent", "Spell first",
                                                                   "Spell second"]


def test_a_full_queue_refuses_and_says_when_to_come_again(swarm, servers):
    cli = swarm("spinoza", policy=replace(PLAIN, queue=1))
    with taken(cli, servers["spinoza"], "spinoza"):
        waiting = cli.start("ask", CAPITAL)
        until(lambda: length(cli.paths) == 1)
        refused = cli.run("ask", CAPITAL, status=1)
        assert "every slot is taken, and 1 questions wait already" in refused.stderr
        assert "ask again in about" in refused.stderr
        assert "Traceback" not in refused.stderr
        waiting.kill()
        waiting.communicate()


def test_who_waits_too_long_is_told(swarm, servers):
    cli = swarm("spinoza", policy=replace(PLAIN, queue_seconds=1.0))
    with taken(cli, servers["spinoza"], "spinoza"):
        refused = cli.run("ask", CAPITAL, status=1)
    assert "no slot became free within 1 s" in refused.stderr
    assert list((cli.paths.state / "queue").glob("*")) == []


def test_control_c_leaves_the_queue(swarm, servers):
    cli = swarm("spinoza")
    with taken(cli, servers["spinoza"], "spinoza"):
        waiting = cli.start("ask", CAPITAL)
        until(lambda: length(cli.paths) == 1)
        waiting.send_signal(signal.SIGINT)
        waiting.communicate(timeout=20)
        assert waiting.returncode == 130
        assert length(cli.paths) == 0


def test_what_others_do_at_a_server_leaves_fewer_slots(swarm, servers, tmp_path):
    cli = swarm("worlock")
    stranger = Cli(paths_under(tmp_path / "stranger"), tmp_path / "stranger")
    stranger.paths.fleet.parent.mkdir(parents=True)
    stranger.paths.inventory.parent.mkdir(parents=True)
    for mine, theirs in ((cli.paths.fleet, stranger.paths.fleet),
                         (cli.paths.inventory, stranger.paths.inventory)):
        theirs.write_text(mine.read_text().replace(str(cli.paths.inventory), str(stranger.paths.inventory)))
    with taken(stranger, servers["worlock"], "worlock", times=2):
        waiting = cli.start("ask", CAPITAL, "--temperature", "0")
        until(lambda: length(cli.paths) == 1)
        time.sleep(0.5)
        assert waiting.poll() is None
    out, err = waiting.communicate(timeout=60)
    assert b"Paris" in out, err


def test_a_waiter_goes_where_a_slot_is_free_first(swarm, servers):
    cli = swarm("spinoza", "worlock")
    with (taken(cli, servers["worlock"], "worlock", times=2) as others,
          taken(cli, servers["spinoza"], "spinoza")):
        waiting = cli.start("ask", "--json", CAPITAL)
        until(lambda: length(cli.paths) == 1)
        for one in others:
            one.kill()
            one.wait()
        out, err = waiting.communicate(timeout=60)
    assert json.loads(out)["host"] == "worlock", err


class Kept:
    """A sink of a thread's own."""

    def __init__(self) -> None:
        self.said = ""

    def text(self, piece) -> None:
        self.said += piece

    def call(self, call) -> None:
        raise AssertionError

    def failed(self, attempt, following) -> None:
        raise AssertionError(attempt)


def test_threads_of_one_process_ask_at_once_and_lose_nothing(swarm):
    """As the gateway does, which keeps in memory how servers stand and what it learned."""
    cli = swarm("spinoza", "worlock", policy=replace(PLAIN, hedge=True))
    many = replace(make_swarm(cli.paths, read_fleet(cli.paths.fleet)), seen={}, learned={})
    sinks = [Kept() for _ in range(24)]

    def ask(number: int) -> None:
        for sink in sinks[number::8]:
            asked = Asked(CAPITAL, temperature=0.0, via="serve")
            put(many, asked, sink, terminal="key:test", clock=time.time)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert all("Paris" in sink.said for sink in sinks)
    rows = cli.rows()
    assert len({row["id"] for row in rows}) == 24
    assert {row["host"] for row in rows} == {"spinoza", "worlock"}
    assert list((cli.paths.state / "queue").glob("*")) == []


class Failing(Kept):
    """A sink that lets candidates fail."""

    def failed(self, attempt, following) -> None:
        self.said = ""


def test_a_runtime_killed_under_load_loses_no_question_and_leaks_nothing(swarm, servers):
    cli = swarm("spinoza", "worlock")
    fleet, seen, learned = read_fleet(cli.paths.fleet), {}, {}
    files, over, said = open_files(), threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            many = replace(make_swarm(cli.paths, fleet), seen=seen, learned=learned)
            sink = Failing()
            asked = Asked(CAPITAL, temperature=0.0, via="serve")
            put(many, asked, sink, terminal="key:test", clock=time.time)
            said.append(sink.said)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
    for one in threads:
        one.start()
    try:
        until(lambda: len(said) > 20)
        servers["worlock"].kill()
        many = len(said)
        until(lambda: len(said) > many + 20)
        servers["worlock"].start()
        many = len(said)
        until(lambda: len(said) > many + 20)
    finally:
        over.set()
        for one in threads:
            one.join(60)
        if servers["worlock"].process.poll() is not None:
            servers["worlock"].start()
    assert all("Paris" in one for one in said)
    assert len(cli.rows()) == len(said)
    assert [claimed(cli.paths, one, 2) for one in make_swarm(cli.paths, fleet).candidates] == [0, 0]
    assert list((cli.paths.state / "queue").glob("*")) == []
    assert open_files() <= files + 1


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Bad(ThreadingHTTPServer):
    """A server that looks idle, and answers questions as `answer` does."""

    daemon_threads = True

    def __init__(self, answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked = 0
        self.gone = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def entry(self, server: Server, name: str = "calisota"):
        """As a host of the same model that is much quicker, so that it is asked first."""
        entry = server.entry(name, 1.0)
        served = replace(entry.served[0], port=self.server_port, prefill_speed=1e6, decode_speed=1e5)
        return replace(entry, served=(served,))


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'[{"is_processing": false}]' if self.path == "/slots" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        self.server.answer(self)

    def log_message(self, *_):
        pass


def refuse(handler) -> None:
    body = b'{"error": {"message": "no"}}'
    handler.send_response(503)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def hang(handler) -> None:
    """Say nothing until the client is gone, as the server sees it."""
    handler.connection.settimeout(60)
    while handler.connection.recv(1024):
        pass
    handler.server.gone.set()


def dawdle(handler) -> None:
    """Refuse, after a while."""
    if not handler.server.gone.wait(1.5):
        with contextlib.suppress(OSError):
            refuse(handler)


@pytest.fixture
def bad():
    made = []

    def make(answer) -> Bad:
        made.append(Bad(answer))
        return made[-1]

    yield make
    for one in made:
        one.shutdown()
        one.server_close()


def test_a_host_that_refuses_at_once_draws_no_questions(swarm, servers, bad):
    refusing = bad(refuse)
    cli = swarm("spinoza", "worlock", more=(refusing.entry(servers["spinoza"]),))
    first = cli.run("ask", CAPITAL, "--temperature", "0")
    assert "Paris" in first.stdout
    assert "calisota: no; worlock is asked instead" in first.stderr \
        or "calisota: no; spinoza is asked instead" in first.stderr
    asking = [cli.start("ask", CAPITAL) for _ in range(4)]
    for one in asking:
        one.communicate(timeout=60)
        assert one.returncode == 0
    assert 1 <= refusing.asked <= 3, "once, and once or twice more to see whether it has come round"
    shown = cli.run("ask", "--explain", CAPITAL)
    file = next((cli.paths.state / "breakers").glob("calisota@*.json"))
    assert json.loads(file.read_text())["why"] == "no"
    assert refusing.asked > 1 or "out: tiny-large on calisota: it failed (no); tried again in" in shown.stderr


def test_it_is_asked_again_by_one_question_after_its_pause_and_taken_back(swarm, servers, bad):
    refusing = bad(refuse)
    cli = swarm("worlock", more=(refusing.entry(servers["spinoza"]),))
    cli.run("ask", CAPITAL)
    file = next((cli.paths.state / "breakers").glob("calisota@*.json"))
    opened = json.loads(file.read_text())
    file.write_text(json.dumps({**opened, "until": time.time() - 1}))
    answering = threading.Event()
    refusing.answer = lambda handler: (answering.wait(30), refuse(handler))
    asking = [cli.start("ask", CAPITAL) for _ in range(3)]
    until(lambda: refusing.asked == 2)
    until(lambda: sum(one.poll() is not None for one in asking) == 2)
    assert refusing.asked == 2, "one probe; the others went elsewhere"
    answering.set()
    for one in asking:
        one.communicate(timeout=60)
        assert one.returncode == 0
    assert json.loads(file.read_text())["failures"] == 2


def test_a_host_that_hangs_is_hedged_and_hung_up_on(swarm, servers, bad):
    hanging = bad(hang)
    cli = swarm("worlock", policy=replace(PLAIN, hedge=True), more=(hanging.entry(servers["spinoza"]),))
    row = ask_json(cli, CAPITAL, "--temperature", "0")
    assert (row["host"], row["answer"].strip()) != ("calisota", "")
    assert row["host"] == "worlock"
    (attempt,) = row["attempts"]
    assert attempt["host"] == "calisota"
    assert attempt["error"].startswith("hedged: no token after")
    assert hanging.gone.wait(10), "its stream is closed at once"
    assert len(cli.rows()) == 1, "one exchange"
    assert row["timings"]["queue_seconds"] > 0.2, "the time that it was late"
    habits = json.loads(next((cli.paths.state / "habits").glob("calisota@*.json")).read_text())
    assert habits["errors"]["first"][0] > 0, "that it was late is learned"


def test_where_nobody_is_idle_at_first_it_is_looked_again(swarm, servers, bad):
    hanging = bad(hang)
    cli = swarm("spinoza", policy=replace(PLAIN, hedge=True), more=(hanging.entry(servers["spinoza"]),))
    found = make_swarm(cli.paths, read_fleet(cli.paths.fleet))
    first, second = (price(Question("routine", 1200), one, Standing(), found.tariff)
                     for one in sorted(found.candidates, key=lambda one: one.host))
    ask = ChatRequest((Message("user", CAPITAL),), temperature=0.0)
    race = Race(found, take(cli.paths, first), rivals(found, first, [second]), ask)
    said: list[str] = []
    reading = threading.Thread(target=lambda: said.extend(one.text for one in race.stream()), daemon=True)
    with take(cli.paths, second) as busy_for_a_while, counting(race) as looks:
        reading.start()
        until(lambda: looks)
        assert not said
        busy_for_a_while.close()
        reading.join(60)
    assert "Paris" in "".join(said)
    assert race.admitted.price.candidate.host == "spinoza"


@contextlib.contextmanager
def counting(race: Race):
    """What a race has learned of how the others stand."""
    looks, hedge = [], race._hedge
    race._hedge = lambda standings: (looks.append(standings), hedge(standings))
    yield looks


@pytest.mark.parametrize("hurt", ["slow", "stopped"])
def test_the_loser_of_a_race_is_free_again_soon(swarm, servers, hurt):
    """Its slot of ours at once, its server's as soon as the server sees that nobody listens."""
    cli = swarm("spinoza", "worlock", policy=replace(PLAIN, hedge=True))
    found = make_swarm(cli.paths, read_fleet(cli.paths.fleet))
    first, second = (price(Question("routine", 1200), one, Standing(), found.tariff)
                     for one in sorted(found.candidates, key=lambda one: one.host))
    assert (first.candidate.host, second.candidate.host) == ("spinoza", "worlock")
    ask = ChatRequest((Message("user", f"{hurt} box, seven apples.\n" * 25),), max_tokens=3, temperature=0.0)
    with slowed(servers["spinoza"].process.pid, 0.002) if hurt == "slow" else stopped(servers["spinoza"]):
        race = Race(found, take(cli.paths, first), rivals(found, first, [second]), ask)
        assert [chunk.finish for chunk in race.stream()][-1] in ("stop", "length")
        assert race.admitted.price.candidate.host == "worlock"
        assert [attempt.host for attempt in race.attempts] == ["spinoza"]
        assert claimed(cli.paths, first.candidate, 1) == claimed(cli.paths, second.candidate, 2) == 0
    until(lambda: busy(servers["spinoza"]) == 0, 10)


@contextlib.contextmanager
def stopped(server: Server):
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def test_control_c_stops_both_of_a_race(swarm, servers, bad):
    hanging = bad(hang)
    cli = swarm("worlock", policy=replace(PLAIN, hedge=True), more=(hanging.entry(servers["spinoza"]),))
    with slowed(servers["worlock"].process.pid):
        process = cli.start("ask", CAPITAL, "--schema", json.dumps(LONG))
        assert process.stdout.read(2), "the second is speaking"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert hanging.gone.wait(10)
    until(lambda: busy(servers["worlock"]) == 0, 10)
    (row,) = cli.rows()
    assert (row["finish"], row["host"]) == ("cancelled", "worlock")
    assert row["attempts"][0]["host"] == "calisota"


def test_the_budget_ends_hedging_before_it_doubles_the_load(swarm, servers, bad):
    hanging = bad(dawdle)
    cli = swarm("worlock", policy=replace(PLAIN, hedge=True), more=(hanging.entry(servers["spinoza"]),))
    hedged = 0
    for _ in range(3):
        row = ask_json(cli, CAPITAL)
        hedged += any(attempt["error"].startswith("hedged") for attempt in row["attempts"])
        for file in (cli.paths.state / "breakers").glob("*.json"):
            file.unlink()
    assert hedged == 1, "one was saved up"


@pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama")
def test_an_ollama_whose_queue_is_full_is_no_broken_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MAX_QUEUE", "1")
    server = OllamaServer(tmp_path)
    try:
        server.create("small")
        said, question = [], ChatRequest((Message("user", CAPITAL),), 4)

        def ask() -> None:
            try:
                said.extend(Ollama().chat(server.endpoint("small"), question, connect_timeout=5,
                                          first_token_timeout=60, token_timeout=30))
            except ServerUnavailable as exc:
                said.append(exc)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(12)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(90)
    finally:
        os.killpg(server.process.pid, signal.SIGTERM)
        server.process.wait(30)
    refused = [one for one in said if isinstance(one, ServerUnavailable)]
    assert refused
    assert {type(one) for one in refused} == {ServerFull}
    assert any(isinstance(one, Chunk) and one.finish for one in said)


def test_a_stopped_process_holds_nobody_up_but_its_own_slot(swarm, servers):
    cli = swarm("worlock")
    with taken(cli, servers["worlock"], "worlock") as (holder,):
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            row = ask_json(cli, CAPITAL, "--max-tokens", "3", limit=120)
        finally:
            os.kill(holder.pid, signal.SIGCONT)
    assert row["host"] == "worlock"
    assert not row["timings"]["queue_seconds"]

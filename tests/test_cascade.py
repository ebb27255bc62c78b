"""Small first: whether, when to stop, and how it looks from outside, over real servers."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
import urllib.request
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Cli, ask_json, slowed
from test_ask import LONG, Server
from waiting import until

from swarmctl.dispatch import cascade as cascading
from swarmctl.dispatch.cascade import Cascade
from swarmctl.dispatch.question import Asked, as_request, put
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.exchange import ChatRequest, Message, Sampling
from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.snapshot import Fleet, read_fleet, write_fleet
from swarmctl.ledger.heard import NAMES, read_curves
from swarmctl.paths import Paths
from swarmctl.routing.cascade import TOGETHER, Stakes, hopeless, plan
from swarmctl.routing.confidence import OF_QUESTION, SIGNALS, STAGES, WHOLE, believe, log_odds, probability
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime
from swarmctl.verbs import route
from swarmctl.verbs.rate import Opinion, rate

SPEAKS = Stakes(before=0.6, large=0.9, start=0.2, token=0.05, tokens=32, direct=12.0, bad=60.0,
                at=(1, 2, 4, 8, 16, 32), information=(0.3, 0.8, 1.5, 2.0, 2.5, 4.0), token_seconds=0.05)
WAITS = {"connect_timeout": 5.0, "first_token_timeout": 60.0, "token_timeout": 30.0}


@st.composite
def stakes(draw):
    share = st.floats(0.02, 0.98)
    steps = draw(st.lists(st.floats(0, 1.5), min_size=6, max_size=6))
    token = draw(st.floats(0.001, 0.3))
    return Stakes(before=draw(share), large=draw(share), start=draw(st.floats(0, 5)), token=token,
                  tokens=32, direct=draw(st.floats(0.1, 60)), bad=draw(st.floats(1, 120)),
                  at=(1, 2, 4, 8, 16, 32), information=tuple(sum(steps[:i + 1]) for i in range(6)),
                  token_seconds=token)


@given(stakes())
@settings(max_examples=60)
def test_small_first_is_chosen_only_where_it_is_cheaper_than_both_fixed_ways(given_stakes):
    found = plan(given_stakes)
    if found.first:
        assert found.cascade < min(found.small, found.large)
    assert 0 <= found.escalates <= 1
    for one in found.thresholds:
        assert 0 <= one.low <= one.high + 1e-9 <= 1 + 2e-9


@given(stakes())
@settings(max_examples=60)
def test_what_is_not_worth_a_plan_would_not_have_been_chosen_by_it(given_stakes):
    assert not (hopeless(given_stakes) and plan(given_stakes).first)


@given(stakes())
@settings(max_examples=40)
def test_a_confidence_that_says_nothing_is_never_waited_for(given_stakes):
    assert not plan(replace(given_stakes, information=(0.0,) * 6)).first


@given(stakes())
@settings(max_examples=40)
def test_to_know_more_is_never_dearer(given_stakes):
    more = tuple(2 * one for one in given_stakes.information)
    less, known = plan(given_stakes), plan(replace(given_stakes, information=more))
    assert known.cascade <= less.cascade + 0.01 * given_stakes.bad


def lived_through(given_stakes, found, rng):
    """What one question costs that obeys the plan, in the world that the plan assumes."""
    at = [0.0, *given_stakes.at]
    told = [0.0, *given_stakes.information]
    good = rng.random() < given_stakes.before
    share = _large(given_stakes, good)
    odds, spent = log_odds(given_stakes.before), given_stakes.start
    for place in range(1, len(at)):
        seconds = (at[place] - at[place - 1]) * given_stakes.token
        spent += seconds + (at[place] - at[place - 1]) * given_stakes.token_seconds * given_stakes.held_back
        step = told[place] - told[place - 1]
        odds += rng.gauss((1 if good else -1) * step / 2, step ** 0.5)
        decision, _ = found.decide(probability(odds), int(at[place]), whole=place == len(at) - 1)
        if decision == "escalate":
            return spent + given_stakes.direct + given_stakes.bad * (rng.random() >= share)
        if decision == "commit":
            return spent + (at[-1] - at[place]) * given_stakes.token + given_stakes.bad * (not good)
    raise AssertionError("it was held past its end")


def _large(given_stakes, good):
    """The large model's share where the small one is right or wrong, solved apart from the product's way."""
    low, high = 0.0, 1.0
    for _ in range(60):
        wrong = (low + high) / 2
        right = TOGETHER * wrong / (1 - wrong + TOGETHER * wrong)
        if given_stakes.before * right + (1 - given_stakes.before) * wrong < given_stakes.large:
            low = wrong
        else:
            high = wrong
    return right if good else wrong


@pytest.mark.parametrize("changes", [
    {}, {"before": 0.8}, {"before": 0.3, "direct": 30.0}, {"bad": 20.0}, {"token": 0.2, "token_seconds": 0.2},
    {"large": 0.75}, {"information": (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)},
])
def test_obeying_the_plan_costs_what_it_says_and_no_more_than_either_fixed_way(changes):
    given_stakes = replace(SPEAKS, **changes)
    found = plan(given_stakes)
    rng = random.Random(1)
    lived = [lived_through(given_stakes, found, rng) for _ in range(6000)]
    mean = sum(lived) / len(lived)
    error = (sum((one - mean) ** 2 for one in lived) / len(lived) ** 2) ** 0.5
    assert mean == pytest.approx(found.cascade, abs=4 * error + 0.01 * found.cascade)
    if found.first:
        assert mean < min(found.small, found.large) + 4 * error


def test_a_plan_takes_milliseconds():
    began = time.process_time()
    for _ in range(10):
        plan(SPEAKS)
    assert time.process_time() - began < 2.0


def test_an_answer_longer_than_expected_is_held_on_but_not_for_ever():
    found = plan(SPEAKS)
    between = (found.thresholds[-2].low + found.thresholds[-2].high) / 2
    assert found.decide(between, 40)[0] == "hold"
    assert found.decide(between, 64)[0] != "hold"
    assert found.decide(between, 33, whole=True)[0] != "hold"


class Seen:
    """A sink that keeps what came, and when."""

    def __init__(self):
        self.pieces, self.failures = [], []

    def text(self, piece):
        self.pieces.append(piece)

    def call(self, call):
        raise AssertionError(call)

    def failed(self, attempt, following):
        self.failures.append((attempt, following))


def curve(shift, speaks=True):
    """A curve that is as sure as `shift` of every answer, and tells much."""
    stage, whole = [shift] + [0.0] * (len(SIGNALS) - 1), [shift] + [0.0] * (len(NAMES) - 1)
    return {"weights": [stage] * WHOLE + [whole, [0.0] * OF_QUESTION], "sorted": [], "ratings": 100,
            "information": [2.0] * WHOLE + [6.0], "gain": 0.2, "gain_low": 0.1 if speaks else -0.1,
            "by": "probabilities"}


class Home:
    """A SWARMCTL_HOME with the small model on spinoza and the large on worlock, which seems slow."""

    def __init__(self, folder, servers):
        self.paths = Paths.from_environ({"SWARMCTL_HOME": str(folder), "HOME": str(folder)})
        self.paths.inventory.parent.mkdir(parents=True)
        self.paths.inventory.write_text("version: 1\n")
        self.cli = Cli(self.paths, folder)
        self.servers = servers
        self.write(Policy(explore=0.0, hedge=False))

    def write(self, policy, **ports):
        hosts = []
        for host, server in self.servers.items():
            entry = server.entry(host, 45.0)
            slow = {"decode_speed": 2.0} if server.model == "large" else {"parameters": 205_200}
            served = replace(entry.served[0], quality={"routine": 0.6 if server.model == "small" else 0.95},
                             port=ports.get(host, server.port), **slow)
            hosts.append(replace(entry, served=(served,)))
        digest = hashlib.sha256(self.paths.inventory.read_bytes()).hexdigest()
        write_fleet(self.paths.fleet, Fleet(str(self.paths.inventory), digest, "2026-01-01T00:00:00Z", None,
                                            30.0, 60.0, tuple(hosts), policy))

    def curves(self, shift, **more):
        folder = self.paths.data / "routing"
        folder.mkdir(parents=True, exist_ok=True)
        by = {"": curve(shift, **more)}
        (folder / "confidence.json").write_text(json.dumps(
            {"names": NAMES, "stages": STAGES, "pooled": None, "models": {"digest-small": by}}))

    def put(self, asked, sink=None, **more):
        swarm = make_swarm(self.paths, read_fleet(self.paths.fleet))
        return put(swarm, asked, sink or Seen(), terminal="t", clock=time.time, **more).exchange


@pytest.fixture(scope="module")
def servers(llamacpp_bin):
    made = {"spinoza": Server(llamacpp_bin, "small", 1024), "worlock": Server(llamacpp_bin, "large", 1024)}
    yield made
    for server in made.values():
        server.kill()


@pytest.fixture
def home(servers, tmp_path):
    for server in servers.values():
        if server.process.poll() is not None:
            server.start()
    return Home(tmp_path, servers)


FRANCE = Asked("What is the capital of France?", temperature=0.0, max_tokens=40)


def test_llama_server_tells_how_likely_each_token_was(servers):
    ask = ChatRequest((Message("user", "What is the capital of France?"),), temperature=0.0, logprobs=True)
    chunks = list(runtime("llamacpp").chat(Endpoint(port=servers["spinoza"].port), ask, **WAITS))
    said = [chunk for chunk in chunks if chunk.text]
    assert "".join(chunk.text for chunk in said) == "Paris"
    assert all(chunk.logprob is not None and chunk.logprob <= 0 for chunk in said)
    assert all(chunk.rival is not None and chunk.rival <= chunk.logprob for chunk in said)


def test_probabilities_are_the_models_own_whatever_the_temperature(servers):
    ask = ChatRequest((Message("user", "What is the capital of France?"),), temperature=0.0, logprobs=True)
    hot = replace(ask, temperature=4.0, sampling=Sampling(top_k=1))
    first, second = (next(chunk for chunk in runtime("llamacpp").chat(
        Endpoint(port=servers["spinoza"].port), one, **WAITS) if chunk.text) for one in (ask, hot))
    assert first.text == second.text
    assert first.logprob == pytest.approx(second.logprob, abs=1e-4)


def test_a_stream_that_is_closed_frees_its_slot_at_once(servers):
    """What giving a small model up rests on: llama-server stops for a client that is gone."""
    endpoint = Endpoint(port=servers["spinoza"].port)
    ask = ChatRequest((Message("user", "Count."),), schema=LONG, logprobs=True)
    before = decoded(endpoint)
    for _ in runtime("llamacpp").chat(endpoint, ask, **WAITS):
        pass
    whole = decoded(endpoint) - before
    with slowed(servers["spinoza"].process.pid):
        stream = runtime("llamacpp").chat(endpoint, ask, **WAITS)
        for _ in range(5):
            next(stream)
        assert runtime("llamacpp").load(endpoint, timeout=60).busy == 1
        stream.close()
    assert 5 <= decoded(endpoint) - before - whole < whole / 2


def decoded(endpoint):
    """How often the server has decoded, once all its slots are free."""
    until = time.monotonic() + 60
    while runtime("llamacpp").load(endpoint, timeout=60).busy:
        assert time.monotonic() < until
        time.sleep(0.01)
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("llamacpp:n_decode_total "))


def test_a_sure_small_model_answers_and_is_recorded_so(home):
    home.curves(+4.0)
    sink = Seen()
    row = home.put(FRANCE, sink)
    said = row.route["cascade"]
    assert (row.model, row.answer, row.attempts) == ("tiny-small", "Paris", ())
    assert "".join(sink.pieces) == "Paris"
    assert said["decision"] == "commit"
    assert said["confidence"] >= said["high"]
    assert said["before"] == pytest.approx(row.route["prices"][0]["good"], abs=1e-3)
    assert said["expected"]["cascade"] < min(said["expected"]["small"], said["expected"]["large"])
    assert said["heard"]["trail"]["tokens"] == 3


def test_an_unsure_small_model_is_given_up_and_the_large_one_answers(home):
    home.curves(-4.0)
    sink, watched, spoke = Seen(), [], []
    row = home.put(FRANCE, sink, watch=watched.append, speaks=spoke.append)
    said = row.route["cascade"]
    assert row.model == "tiny-large"
    assert "".join(sink.pieces) == row.answer
    assert "".join(chunk.text for chunk in watched) == row.answer
    assert [price.candidate.model for price in spoke] == ["tiny-large"]
    assert sink.failures == []
    assert said["decision"] == "escalate"
    assert said["confidence"] <= said["low"]
    assert said["tokens"] == 1
    assert said["text"] == "P"
    assert said["seconds"] > 0
    assert [(attempt.host, attempt.model, attempt.tokens) for attempt in row.attempts] == [
        ("spinoza", "tiny-small", 0)]
    assert "likely good" in row.attempts[0].error
    until(lambda: not runtime("llamacpp").load(Endpoint(port=home.servers["spinoza"].port), timeout=20).busy)


def test_what_was_held_is_shown_in_its_order_and_once(home):
    home.curves(0.0)
    weights = json.loads((home.paths.data / "routing" / "confidence.json").read_text())
    weights["models"]["digest-small"][""]["weights"][WHOLE][0] = 5.0  # sure of the whole, and not before
    (home.paths.data / "routing" / "confidence.json").write_text(json.dumps(weights))
    sink, watched, spoke = Seen(), [], []
    row = home.put(FRANCE, sink, watch=watched.append, speaks=spoke.append)
    assert row.route["cascade"]["decision"] == "commit"
    assert row.route["cascade"]["tokens"] == 3
    assert sink.pieces == ["P", "ar", "is"]
    assert [chunk.text for chunk in watched] == ["P", "ar", "is", ""]
    assert [price.candidate.model for price in spoke] == ["tiny-small"]


def test_explain_says_what_the_confidence_was_and_what_followed(home):
    home.curves(-4.0)
    done = home.cli.run("ask", "--explain", "--temperature", "0", "What is the capital of France?")
    assert "→ tiny-small on spinoza: asked first" in done.stderr
    assert "tiny-large was asked instead" in done.stderr
    assert done.stdout.strip()
    shutil.rmtree(home.paths.state / "habits")  # the large model turned out to be quick
    home.curves(+4.0)
    assert "likely good" in home.cli.run("ask", "--explain", "What is the capital of Italy?").stderr


@pytest.mark.parametrize(("changes", "why"), [
    ({"model": "tiny-large"}, "by name"),
    ({"schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}}}, "schema"),
    ({"raw": True}, "raw"),
    ({"host": "worlock"}, "no other model"),
])
def test_what_cannot_cascade_says_why(home, changes, why):
    home.curves(-4.0)
    row = home.put(replace(FRANCE, **changes))
    assert row.route["cascade"]["decision"] == "direct"
    assert why in row.route["cascade"]["why"]
    assert row.attempts == ()


def test_the_inventory_can_forbid_it(home):
    home.write(Policy(cascade=False, hedge=False))
    home.curves(-4.0)
    row = home.put(FRANCE)
    assert row.route["cascade"] == {"decision": "direct", "why": "the inventory's routing has cascade: false"}
    assert "no cascade" in home.cli.run("ask", "--explain", "What is the capital of Italy?").stderr


def test_a_model_whose_confidence_says_nothing_is_skipped(home):
    home.curves(-4.0, speaks=False)
    assert "says nothing" in home.put(FRANCE).route["cascade"]["why"]


def test_without_ratings_nothing_changes_but_that_it_listens(home):
    row = home.put(FRANCE)
    assert "too few ratings" in row.route["cascade"]["why"]
    assert row.route["cascade"]["heard"]["trail"]["tokens"] > 0
    assert "logprobs" not in row.params


def test_nobody_listens_to_the_largest_model(home):
    assert "heard" not in home.put(replace(FRANCE, model="tiny-large")).route["cascade"]
    assert "heard" in home.put(replace(FRANCE, model="tiny-small")).route["cascade"]


def test_a_small_model_whose_host_is_down_costs_no_answer(home):
    home.curves(+4.0)
    home.write(Policy(explore=0.0, hedge=False), spinoza=free_ports(1)[0])
    swarm = make_swarm(home.paths, read_fleet(home.paths.fleet))
    row = home.put(FRANCE)
    assert row.model == "tiny-large"
    assert row.finish == "stop"
    assert swarm.candidates


#: An answer of random tokens, by a seed with which it is long: it can be met half way.
ENDLESS = replace(FRANCE, temperature=50.0, max_tokens=900, seed=6,
                  sampling=Sampling(top_k=0, top_p=1.0, min_p=0.0))


def test_the_endless_answer_is_long(servers):
    ask = as_request(replace(ENDLESS, logprobs=True))
    assert len(list(runtime("llamacpp").chat(Endpoint(port=servers["spinoza"].port), ask, **WAITS))) > 100


def at_first_token(monkeypatch, act):
    """Do something while the small model's first token is judged, and the rest of its answer is to come."""
    done = []

    def met(curve, before, trail, signs=None):
        if trail.tokens and not done:
            done.append(trail.tokens)
            act()
        return believe(curve, before, trail, signs)

    monkeypatch.setattr(cascading, "believe", met)
    return done


def test_a_small_model_that_dies_while_it_is_held_leaves_no_trace_in_the_answer(home, servers, monkeypatch):
    home.curves(0.0)
    sink = Seen()
    victim = servers["spinoza"]
    met = at_first_token(monkeypatch, victim.kill)
    with slowed(victim.process.pid):
        row = home.put(ENDLESS, sink)
    assert met == [1]
    assert row.model == "tiny-large"
    assert "".join(sink.pieces) == row.answer
    assert all(attempt.tokens == 0 for attempt in row.attempts)
    assert row.route["cascade"]["decision"] == "failed"


def test_where_the_large_one_is_gone_the_small_one_is_believed_after_all(home):
    home.curves(-4.0)
    home.put(FRANCE)
    home.servers["worlock"].kill()
    swarm = make_swarm(home.paths, read_fleet(home.paths.fleet))
    request = ChatRequest((Message("user", "What is the capital of Spain?"),), temperature=0.0)
    way = home.put(FRANCE).route
    assert way["prices"]
    sink = Seen()
    row = home.put(replace(FRANCE, prompt="What is the capital of Spain?"), sink)
    assert row.model == "tiny-small"
    assert "".join(sink.pieces) == row.answer
    assert Cascade(swarm, _both(swarm), request, "routine").way.prices


def _both(swarm):
    from swarmctl.routing.cost import Question, Standing, choose

    return choose(Question("routine", 30), [(one, Standing()) for one in swarm.candidates], swarm.tariff)


def test_an_escalation_that_finds_nobody_comes_back_to_the_small_one(home):
    home.curves(-4.0)
    swarm = make_swarm(home.paths, read_fleet(home.paths.fleet))
    way = _both(swarm)
    home.servers["worlock"].kill()
    sink = Seen()
    request = ChatRequest((Message("user", "What is the capital of France?"),), temperature=0.0)
    cascade = Cascade(swarm, way, request, "routine")
    outcome = cascade.answer(sink, time.time)
    assert outcome.answer == "Paris"
    assert outcome.price.candidate.model == "tiny-small"
    assert [attempt.model for attempt in outcome.attempts] == ["tiny-small", "tiny-large"]
    assert "".join(sink.pieces) == "Paris"


def test_ctrl_c_while_it_is_held_is_recorded_as_cancelled(home, monkeypatch):
    home.curves(0.0)
    sink = Seen()
    at_first_token(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        home.put(FRANCE, sink)
    assert sink.pieces == []
    row = next(row for row in home.cli.rows() if row["kind"] == "exchange")
    assert row["finish"] == "cancelled"
    assert row["route"]["cascade"]["decision"] == "cancelled"


def test_a_swarm_that_is_rated_learns_to_cascade(home):
    """From nothing: answers are heard, people rate them, the curve speaks, and the next question is small
    first. Here the half that the model was surer of is good, which no question tells of itself."""
    capitals = [f"What is the capital of {country}?" for country in (
        "France", "Spain", "Italy", "Germany", "Poland", "Japan", "China", "India", "Egypt", "Kenya", "Peru",
        "Chile", "Cuba", "Norway", "Sweden", "Finland", "Greece", "Austria", "Hungary", "Portugal", "Brazil",
        "Canada", "Ghana", "Iran", "Iraq", "Nepal", "Oman", "Qatar", "Syria", "Turkey", "Ukraine", "Vietnam",
        "Laos", "Malta", "Niger", "Libya", "Ireland", "Iceland", "Belgium", "Bolivia")]
    rows = [home.put(Asked(question, model="tiny-small", temperature=0.0, max_tokens=40))
            for question in capitals]
    rows.sort(key=lambda row: row.route["cascade"]["heard"]["trail"]["total"])
    for place, row in enumerate(rows):
        good = place >= len(rows) / 2
        rate(home.paths, Opinion("up" if good else "down"), terminal="t", now=time.time(), id_part=row.id)
    route.fit(home.paths, time.time, lambda _: None, wait=5)
    assert read_curves(home.paths).of("digest-small", "routine").speaks
    row = ask_json(home.cli, "What is the capital of Denmark?", "--temperature", "0")
    assert row["route"]["cascade"]["decision"] in ("commit", "escalate")


OLLAMA = os.environ.get("SWARMCTL_TEST_OLLAMA", "")


@pytest.mark.skipif(not OLLAMA, reason="SWARMCTL_TEST_OLLAMA names no Ollama")
def test_ollama_tells_the_same_probabilities_and_stops_for_a_closed_stream(servers, tmp_path):
    from test_ollama import Server as Ollama

    server = Ollama(tmp_path)
    try:
        server.create("small")
        turns = (Message("user", "What is the capital of France?"),)
        ask = ChatRequest(turns, temperature=0.0, logprobs=True)

        def said(kind, endpoint):
            return [chunk for chunk in runtime(kind).chat(endpoint, ask, **WAITS) if chunk.text]

        theirs = said("ollama", server.endpoint("small"))
        ours = said("llamacpp", Endpoint(port=servers["spinoza"].port))
        assert [chunk.text for chunk in theirs] == [chunk.text for chunk in ours]
        assert [chunk.logprob for chunk in theirs] == pytest.approx(
            [chunk.logprob for chunk in ours], abs=1e-3)
        assert [chunk.rival for chunk in theirs] == pytest.approx([chunk.rival for chunk in ours], abs=1e-2)
        stream = runtime("ollama").chat(server.endpoint("small"), replace(ask, schema=LONG), **WAITS)
        for _ in range(5):
            next(stream)
        stream.close()
        assert said("ollama", server.endpoint("small"))[0].text == theirs[0].text
    finally:
        os.killpg(server.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(30)

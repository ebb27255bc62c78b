"""The inventory: every problem at its line, never a traceback, one truth for parser, schema and page."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmctl.errors import InventoryError
from swarmctl.fleet.inventory_file import decode, read_inventory
from swarmctl.inventory import Energy, Inventory, LlamaCppWish, Placement, parse_inventory, placement_ports
from swarmctl.inventory.publish import json_schema, reference
from swarmctl.inventory.shape import INVENTORY, OWNED_FLAGS, Kind, Listing, Record, Table
from swarmctl.verbs.inventory import schema_text, summary

ROOT = Path(__file__).parent.parent
EXAMPLE = (ROOT / "inventory.yaml").read_text(encoding="utf-8")
LEAST = "version: 1\nhosts:\n  a:\n"
BRIEF = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


def problems(text: str) -> list[str]:
    with pytest.raises(InventoryError) as caught:
        parse_inventory(text, "inventory.yaml")
    return caught.value.message.splitlines()


def test_the_example_is_the_three_hosts_of_the_readme():
    inventory = parse_inventory(EXAMPLE, "inventory.yaml")
    assert [host.name for host in inventory.hosts] == ["worlock", "spinoza", "calisota"]
    worlock, spinoza, calisota = inventory.hosts
    assert worlock.ssh == "worlock"
    assert "train" in worlock.roles
    assert placement_ports(worlock) == (8090, 8091)
    assert spinoza.limits.memory == 12 * 2**30
    assert spinoza.energy == Energy(price=0.30, currency="EUR", idle_watts=12, load_watts=55)
    assert calisota.models == (Placement("large", context=8192, parallel=4, runtime="llamacpp"),)
    assert inventory.models["small"].quality["complex"] == 0.3


def test_the_least_inventory_is_a_host_with_nothing_said_of_it():
    host = parse_inventory(LEAST, "x").hosts[0]
    assert (host.name, host.ssh, host.roles, host.models) == ("a", "a", ("inference",), ())
    assert host.llamacpp is None


def test_llama_cpp_is_wished_where_models_are_placed_or_where_it_is_named():
    text = ("version: 1\nmodels: {m: {source: shipped:small}}\n"
            "hosts: {a: {models: [m]}, b: {llamacpp: }, c: {}}")
    wished = [host.llamacpp for host in parse_inventory(text, "x").hosts]
    assert wished == [LlamaCppWish(), LlamaCppWish(), None]


def test_a_hosts_price_of_energy_wins_over_the_swarms():
    text = ("version: 1\nenergy: {price: 0.4, currency: CHF}\n"
            "hosts: {a: {}, b: {energy: {price: 0.1}}, c: {energy: {idle_watts: 5}}}")
    assert [host.energy for host in parse_inventory(text, "x").hosts] == [
        Energy(0.4, "CHF"), Energy(0.1, "CHF"), Energy(0.4, "CHF", idle_watts=5)]


def test_every_problem_is_told_at_once_with_line_field_and_fix():
    text = """\
version: 1
modles: {}
models:
  small: {source: shipped:small, quality: {routin: 3}}
  web: {source: "https://example.org/y.gguf", flags: {host: 0.0.0.0, parallel: 2}}
hosts:
  worlock:
    ssh: 123
    models: [smal, {model: small, context: lots, parallel: 1_0}]
    limits: {memory: 8G, threads: -1}
    roles: [trian]
  worlock: {}
  -x: {}
"""
    assert problems(text) == [
        "inventory.yaml:2: modles: unknown key; did you mean models?",
        "inventory.yaml:4: models.small.quality.routin: unknown key; did you mean routine?",
        "inventory.yaml:5: models.web.flags.host: swarmctl sets this itself; leave it out",
        "inventory.yaml:5: models.web.flags.parallel: swarmctl sets this itself; use `parallel`",
        "inventory.yaml:5: models.web.source: a download needs sha256: with the publisher's hash",
        "inventory.yaml:8: hosts.worlock.ssh: expected an SSH alias, [user@]address[:port], or local, found "
        "123; "
        'write it in quotes: "123"',
        "inventory.yaml:9: hosts.worlock.models[0]: no model smal under models; did you mean small?",
        "inventory.yaml:9: hosts.worlock.models[1].context: expected a whole number of tokens, found "
        "\"lots\"; "
        "write e.g. 8192",
        "inventory.yaml:9: hosts.worlock.models[1].parallel: expected a whole number of conversations, found "
        '"1_0"; write 10',
        'inventory.yaml:10: hosts.worlock.limits.memory: expected a size, found "8G"; write e.g. 16GiB',
        "inventory.yaml:10: hosts.worlock.limits.threads: expected a whole number of threads, found -1; "
        "write e.g. 8",
        'inventory.yaml:11: hosts.worlock.roles[0]: expected a role, found "trian"; did you mean train?; '
        'one of '
        "orchestrate, train, inference, preprocess, evaluate, embed",
        "inventory.yaml:12: hosts.worlock: written twice (first on line 7); keep one",
        "inventory.yaml:13: hosts.-x: not a host's name (letters, digits, . _ -); write e.g. worlock",
    ]


WRONG = {
    "": "inventory.yaml: empty",
    "# nothing but words": "inventory.yaml: empty",
    "- a\n- b": "inventory.yaml:1: expected a mapping with version, models and hosts, found a list",
    "hello": 'inventory.yaml:1: expected a mapping with version, models and hosts, found "hello"',
    "version: 1": "inventory.yaml:1: hosts: missing; write e.g. hosts: {…}",
    "version: 1\nhosts: {}": "inventory.yaml:2: hosts: expected a mapping of hosts, found none; add at "
                             "least one",
    "version: 2\nhosts: {a: }": "inventory.yaml:1: version: expected the number 1, found 2; write e.g. 1",
    "version: '1'\nhosts: {a: }": 'inventory.yaml:1: version: expected the number 1, found "1"; write 1 '
                                  'without quotes',
    "version: 1\nhosts:\n\ta: {}": "inventory.yaml:3: not valid YAML: while scanning for the next token, "
                                   "found character"
                                  " that cannot start any token; indent with spaces, not with tabs",
    "version: 1\nhosts: {a: }\n---\nb: 1": "inventory.yaml:3: a second document begins here; an inventory "
                                           "is one",
    "version: 1\nhosts: {a: !!python/object:os.system {}}": "inventory.yaml:2: tags such as "
                                                            "tag:yaml.org,2002:python/object:os.system have "
                                                            "no meaning "
                                                            "here; leave them out",
    "version: 1\nhosts: {? [a] : b}": "inventory.yaml:2: a key must be a plain word, not a list or a mapping",
    "version: 1\nhosts: &a {b: *a}": "inventory.yaml:2: *a refers to nothing that ends before it",
    LEAST + "    data_dir: data": 'inventory.yaml:4: hosts.a.data_dir: expected an absolute folder, or one '
                                  'under ~/, '
                                  'found "data"; write e.g. /mnt/nvme/swarmctl',
    LEAST + "    connect_timeout: .inf": "inventory.yaml:4: hosts.a.connect_timeout: expected seconds, "
                                         "found \".inf\"; "
                                         "write e.g. 5",
    LEAST + "    llamacpp: {port: 08090}": "inventory.yaml:4: hosts.a.llamacpp.port: expected a port from "
                                           "1024 to 65535,"
                                           " found \"08090\"; write 8090",
    LEAST + "    llamacpp: {port: 12:30}": "inventory.yaml:4: hosts.a.llamacpp.port: expected a port from "
                                           "1024 to 65535,"
                                           " found \"12:30\"; write e.g. 8090",
    LEAST + "    energy: {idle_watts: 9, load_watts: 3}": "inventory.yaml:4: hosts.a.energy.load_watts: "
                                                          "less than "
                                                          "idle_watts; swap the two?",
    LEAST + "    backend: cuda": "inventory.yaml:4: hosts.a.backend: unknown key; it belongs under "
                                 "hosts.NAME.llamacpp",
    LEAST + "    airgap: /x": "inventory.yaml:4: hosts.a.airgap: unknown key; it belongs under the top level",
    LEAST + "  b: {ssh: a}": "inventory.yaml:4: hosts.b: same machine and data_dir as a; merge them or "
                             "change one "
                             "data_dir",
    LEAST + "    roles: [train, train]": "inventory.yaml:4: hosts.a.roles: lists something twice; name each "
                                         "once",
    LEAST + "    roles: train": 'inventory.yaml:4: hosts.a.roles: expected a list of roles, found "train"; '
                                'write e.g. '
                                "[inference]",
    LEAST + "    ssh: -oProxyCommand=x": "inventory.yaml:4: hosts.a.ssh: expected an SSH alias, "
                                         "[user@]address[:port], "
                                         'or local, found "-oProxyCommand=x"; write e.g. me@10.0.0.7:22',
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_a_mistake_is_named(text, message):
    assert problems(text) == [message]


def test_two_servers_of_one_machine_may_not_meet_on_a_port():
    text = """\
version: 1
models: {m: {source: shipped:small}, n: {source: shipped:small}}
hosts:
  a: {ssh: box, models: [m, n]}
  b: {ssh: box, data_dir: /b, models: [{model: m, port: 8091}]}
  c: {ssh: other, models: [m, {model: n, port: 8090}]}
"""
    assert problems(text) == [
        "inventory.yaml:5: hosts.b.models[0]: port 8091 of this machine is taken by hosts.a.models[1]; give "
        "one another "
        "port",
        "inventory.yaml:6: hosts.c.models[1]: port 8090 of this machine is taken by hosts.c.models[0]; give "
        "one another "
        "port",
    ]


def test_what_yaml_1_1_would_twist_is_read_as_it_is_written():
    text = ("version: 1\nmodels: {no: {source: shipped:small, flags: {flash-attn: on, cache-type-k: q8_0}}}\n"
            "hosts:\n  on: {ssh: off, models: [no]}\n  0755: {ssh: 'x'}\n")
    inventory = parse_inventory(text, "x")
    assert [(host.name, host.ssh) for host in inventory.hosts] == [("on", "off"), ("0755", "x")]
    assert inventory.models["no"].flags == {"flash-attn": "on", "cache-type-k": "q8_0"}


@pytest.mark.parametrize(("written", "size"), [
    ("8GiB", 8 * 2**30), ("500MB", 500_000_000), ("1.5 KiB", 1536), ("17", 17), ("2TB", 2 * 10**12),
    ("10B", 10)])
def test_sizes_are_bytes(written, size):
    assert parse_inventory(f"{LEAST}    limits: {{memory: {written}}}", "x").hosts[0].limits.memory == size


@pytest.mark.parametrize("written", ["0", "-5", "8 gigs", "1e3", "99999999TB", "0GB", "[]", "{}", '""'])
def test_what_is_no_size_is_refused(written):
    assert len(problems(f"{LEAST}    limits: {{memory: {written}}}")) == 1


def test_anchors_and_merges_work():
    text = """\
version: 1
models: {m: &m {source: shipped:small, context: 512}, n: {<<: *m, context: 1024}}
hosts:
  a: &a {roles: [embed], models: [m], data_dir: /d}
  b: {<<: *a, data_dir: /e}
"""
    inventory = parse_inventory(text, "x")
    assert (inventory.models["n"].source, inventory.models["n"].context) == ("shipped:small", 1024)
    assert (inventory.hosts[1].roles, inventory.hosts[1].data_dir) == (("embed",), "/e")


BOMBS = {
    "billion laughs": "a: &a [x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)),
    "in known keys": "version: 1\nmodels: {m: {source: shipped:small}}\nhosts:\n  a0: &h {models: &m ["
                     + "m, " * 3000 + "]}\n" + "".join(f"  a{i}: *h\n" for i in range(1, 3000)),
    "merged": "version: 1\nx: &x {<<: [" + "{a: b}, " * 300 + "]}\nhosts:\n"
              + "".join(f"  h{i}: {{<<: [{', '.join(['*x'] * 300)}]}}\n" for i in range(300)),
    "deep": "[" * 100_000,
    "deep maps": "{a: " * 100_000,
    "deep block": "\n".join(" " * i + "a:" for i in range(1200)),
    "deep dashes": "- " * 100_000,
    "long": "a: " + "x" * 2_000_000,
    "many": "version: 1\nhosts:\n" + "".join(f"  h{i}: {{x: 1}}\n" for i in range(40_000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_soon_in_an_error(name):
    started = time.process_time()
    lines = problems(BOMBS[name])
    assert time.process_time() - started < 5
    assert len(lines) <= 51


def test_a_lone_surrogate_is_not_utf_8():
    assert problems("version: 1\na: \ud800") == ["inventory.yaml:2: not valid UTF-8"]


def test_bytes_that_are_not_utf_8_are_named_with_their_line(tmp_path):
    path = tmp_path / "inventory.yaml"
    path.write_bytes(b"version: 1\nhosts:\n  caf\xe9: {}\n")
    with pytest.raises(InventoryError, match=r"inventory\.yaml:3: not valid UTF-8 \(byte 0xe9\)"):
        read_inventory(path)


def test_a_missing_inventory_says_which_command_writes_one(tmp_path):
    with pytest.raises(InventoryError, match="there is no inventory at") as caught:
        read_inventory(tmp_path / "none.yaml")
    assert caught.value.hint == "`swarmctl init` writes one"
    with pytest.raises(InventoryError, match="cannot be read"):
        read_inventory(tmp_path)


def test_paths_are_relative_to_the_inventorys_folder(tmp_path):
    path = tmp_path / "inventory.yaml"
    path.write_text("version: 1\nssh_config: ssh/config\nairgap: ./air\nmodels:\n  a: {source: "
                    "models/a.gguf}\n"
                    "  b: {source: shipped:small}\n  c: {source: ~/c.gguf}\nhosts: {h: }\n", encoding="utf-8")
    inventory = read_inventory(path)
    assert inventory.ssh_config == str(tmp_path / "ssh/config")
    assert inventory.airgap == str(tmp_path / "air")
    assert [model.source for model in inventory.models.values()] == [
        str(tmp_path / "models/a.gguf"), "shipped:small", str(Path.home() / "c.gguf")]


def test_an_unknown_users_home_is_an_error(tmp_path):
    path = tmp_path / "inventory.yaml"
    path.write_text("version: 1\nairgap: ~nobody-of-that-name/x\nhosts: {h: }\n", encoding="utf-8")
    with pytest.raises(InventoryError, match="no such user's home"):
        read_inventory(path)


# --- nothing but InventoryError, ever

def only_inventory_errors(text: str) -> Inventory | None:
    try:
        return parse_inventory(text, "x")
    except InventoryError:
        return None


@BRIEF
@given(st.text(max_size=400))
def test_any_text_is_an_inventory_or_an_inventory_error(text):
    only_inventory_errors(text)


@BRIEF
@given(st.text(alphabet="{}[]:,-#&*!|>'\"%@`?~<=. \n\tab10\\\ufeff", max_size=200))
def test_any_text_of_yamls_own_signs_is_an_inventory_or_an_inventory_error(text):
    only_inventory_errors(text)


@BRIEF
@given(st.binary(max_size=400))
def test_any_bytes_are_an_inventory_or_an_inventory_error(raw):
    with contextlib.suppress(InventoryError):
        only_inventory_errors(decode(raw, "x"))


def keys_of(kind: Kind) -> set[str]:
    match kind:
        case Record():
            return {key.name for key in kind.keys}.union(*(keys_of(key.kind) for key in kind.keys))
        case Table() | Listing():
            return keys_of(kind.item)
        case _:
            return set()


WORDS = [*sorted(keys_of(INVENTORY)), *sorted(OWNED_FLAGS), "small", "a", "b", "shipped:small", "inference",
         "auto", "8GiB", "local", "<<"]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
                    st.sampled_from(WORDS), st.integers(1, 9000))
ANYTHING = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=4),
    st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), inner, max_size=5)),
    max_leaves=20)


@BRIEF
@given(ANYTHING)
def test_any_structure_is_an_inventory_or_an_inventory_error(value):
    only_inventory_errors(yaml.safe_dump(value, allow_unicode=True))
    only_inventory_errors(yaml.safe_dump({"version": 1, "models": {"a": value}, "hosts": {"b": value}}))


def mutated(value, path, new):
    """The value with what lies at `path` replaced, or removed where `new` is the string `remove`."""
    if not path:
        return new
    head, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if not rest and new == "remove":
        del copy[head]
    else:
        copy[head] = mutated(copy[head], rest, new)
    return copy


def every_path(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from every_path(inner, (*path, key))


EXAMPLE_DATA = yaml.safe_load(EXAMPLE)
EXAMPLE_PATHS = [path for path in every_path(EXAMPLE_DATA) if path]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())
BETWEEN_ENTRIES = ("no model ", "is placed twice", "is taken by", "same machine and data_dir",
                   "less than idle_watts", "would listen on port")


@settings(BRIEF, max_examples=300)
@given(st.sampled_from(EXAMPLE_PATHS), st.one_of(ANYTHING, st.just("remove")))
def test_a_mutated_inventory_is_refused_by_the_schema_where_the_parser_refuses_its_structure(path, new):
    data = mutated(EXAMPLE_DATA, path, new)
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError:
        return
    try:
        parse_inventory(text, "x")
    except InventoryError as exc:
        structural = [line for line in exc.message.splitlines()
                      if not any(word in line for word in BETWEEN_ENTRIES)]
        if structural and "not valid" not in exc.message:
            assert not VALIDATOR.is_valid(data), structural
    else:
        assert VALIDATOR.is_valid(data), [error.message for error in VALIDATOR.iter_errors(data)]


# --- published forms

def test_the_published_schema_is_a_schema_and_is_up_to_date():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    published = (ROOT / "swarmctl" / "inventory.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "run `swarmctl inventory schema > swarmctl/inventory.schema.json`"


def test_the_schema_takes_the_example_and_the_example_names_the_schema():
    VALIDATOR.validate(EXAMPLE_DATA)
    first = EXAMPLE.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (ROOT / first.partition("=")[2]).is_file()


def test_the_schema_takes_the_labs_inventory():
    from swarmctl.lab.swarm import host_names, inventory_text

    hosts = [(name, 8090 + index, Path("/tmp") / name) for index, name in enumerate(host_names(5))]
    text = inventory_text(hosts, Path("/tmp/ssh_config"))
    parse_inventory(text, "lab")
    VALIDATOR.validate(yaml.safe_load(text))


def test_the_schema_describes_every_key():
    def properties(schema):
        for name, inner in schema.get("properties", {}).items():
            yield name, inner
        for inner in [*schema.get("properties", {}).values(), schema.get("items"), *schema.get("anyOf", []),
                      schema.get("additionalProperties")]:
            if isinstance(inner, dict):
                yield from properties(inner)

    found = dict(properties(json_schema()))
    assert set(found) >= keys_of(INVENTORY)
    assert all(inner.get("description") for inner in found.values())


def test_the_reference_page_holds_the_tables_of_the_shape():
    page = (ROOT / "docs" / "inventory.md").read_text(encoding="utf-8")
    assert reference().strip() in page, "swarmctl.inventory.publish.reference() makes them"


def test_the_summary_names_ports_and_models_that_nobody_wants():
    text = ("version: 1\nmodels: {m: {source: shipped:small}, n: {source: shipped:small}}\n"
            "hosts: {a: {models: [m]}}")
    found = summary(parse_inventory(text, "x"))
    assert found["hosts"][0]["models"] == [{"model": "m", "port": 8090}]
    assert found["unused_models"] == ["n"]


def test_the_inventory_module_loads_without_yaml():
    code = "import sys, swarmctl.inventory, swarmctl.facts; sys.exit('yaml' in sys.modules)"
    assert subprocess.run((sys.executable, "-c", code), check=False, timeout=60).returncode == 0


# --- the command

def swarmctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((sys.executable, "-m", "swarmctl", *words), capture_output=True, text=True,
                          check=False, timeout=60)


def test_check_answers_in_json_and_in_a_table():
    done = swarmctl("inventory", "check", str(ROOT / "inventory.yaml"), "--json")
    assert [host["name"] for host in json.loads(done.stdout)["hosts"]] == ["worlock", "spinoza", "calisota"]
    done = swarmctl("-i", str(ROOT / "inventory.yaml"), "inventory", "check")
    assert done.returncode == 0
    assert "small :8090" in done.stdout
    assert "is a good inventory: 3 hosts, 2 models." in done.stderr


def test_check_ends_with_2_and_every_problem_on_stderr(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("version: 1\nhosts: {a: {rolls: [x]}}\n", encoding="utf-8")
    done = swarmctl("inventory", "check", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{path}:2: hosts.a.rolls: unknown key; did you mean roles?" in done.stderr


def test_check_finds_models_that_nothing_ships_and_says_which_files_are_not_here(tmp_path):
    path = tmp_path / "inventory.yaml"
    path.write_text("version: 1\nmodels:\n  a: {source: gone.gguf, context: 512}\n"
                    "  b: {source: 'shipped:small', context: 512}\nhosts: {x: {models: [a, b]}}\n")
    done = swarmctl("inventory", "check", str(path))
    assert done.returncode == 0
    assert f"a: {tmp_path / 'gone.gguf'} is not on this machine, and `up` needs it here." in done.stderr
    path.write_text(path.read_text().replace("shipped:small", "shipped:smal"))
    done = swarmctl("inventory", "check", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "models.b.source: swarmctl ships no smal" in done.stderr
    assert "it ships: large, small" in done.stderr


def test_what_happens_to_an_idle_host_is_read():
    text = OLLAMA_HOSTS.replace("idle_minutes: 30", "idle_minutes: 30, when_idle: poweroff, wake_via: both, "
                                "wake_on_demand: true, sleep_command: [sudo, -n, zzz]")
    host = parse_inventory(text, "inventory.yaml").host("neither")
    assert (host.when_idle, host.wake_via, host.wake_on_demand) == ("poweroff", "both", True)
    assert host.sleep_command == ("sudo", "-n", "zzz")
    plain = parse_inventory(OLLAMA_HOSTS, "inventory.yaml").host("only")
    assert (plain.when_idle, plain.wake_via, plain.wake_on_demand, plain.sleep_command) == (
        "nothing", None, False, ())


def test_schema_prints_the_schema():
    assert json.loads(swarmctl("inventory", "schema").stdout) == json_schema()


OLLAMA_HOSTS = """
version: 1
models:
  small: {source: shipped:small}
  qwen: {source: "ollama:qwen3:0.6b", embedding: true}
hosts:
  only: {ollama: {port: 12000, env: {OLLAMA_DEBUG: true}}, models: [small, {model: qwen}]}
  both: {ollama: {}, llamacpp: {port: 9000}, models: [qwen, small, {model: small2, runtime: ollama}]}
  neither: {models: [small, qwen], intermittent: true, mac: AA:bb:cc:dd:ee:ff, idle_minutes: 30}
""".replace("  qwen:", "  small2: {source: shipped:small}\n  qwen:", 1)


def test_a_placement_runs_on_the_only_runtime_named_else_on_llama_cpp_and_what_is_pulled_on_ollama():
    only, both, neither = parse_inventory(OLLAMA_HOSTS, "inventory.yaml").hosts
    assert [one.runtime for one in only.models] == ["ollama", "ollama"]
    assert only.llamacpp is None
    assert placement_ports(only) == (12000, 12000)
    assert [one.runtime for one in both.models] == ["ollama", "llamacpp", "ollama"]
    assert placement_ports(both) == (11434, 9001, 11434)
    assert [one.runtime for one in neither.models] == ["llamacpp", "ollama"]
    assert neither.ollama is not None
    assert (neither.intermittent, neither.mac, neither.idle_minutes) == (True, "aa:bb:cc:dd:ee:ff", 30.0)


@pytest.mark.parametrize(("change", "words"), [
    (("models: [small, {model: qwen}]", "models: [{model: qwen, runtime: llamacpp}]"),
     "ollama:qwen3:0.6b is for Ollama"),
    (("models: [small, {model: qwen}]", "models: [{model: small, port: 9}]"), "expected a port"),
    (("models: [small, {model: qwen}]", "models: [{model: small, port: 9000}]"), "use ollama.port"),
    (("models: [small, {model: qwen}]", "models: [{model: small, flags: {mlock: true}}]"), "use ollama.env"),
    (("OLLAMA_DEBUG: true", "OLLAMA_HOST: x"), "use `port`"),
    (("llamacpp: {port: 9000}", "llamacpp: {port: 11433}"), "port 11434 of this machine is taken by"),
    (("intermittent: true", "intermittent: maybe"), "expected true or false"),
    (("intermittent: true", "when_idle: suspend"), "needs intermittent: true"),
    (("idle_minutes: 30", "when_idle: suspend"), "needs idle_minutes"),
    (("idle_minutes: 30", "idle_minutes: 3, ssh: local, when_idle: suspend"),
     "the machine that would have to wake it"),
    (("mac: AA:bb:cc:dd:ee:ff", "wake_on_demand: true"), "needs mac"),
    (("idle_minutes: 30", "wake_via: nobody"), "nobody is no host"),
    (("idle_minutes: 30", "wake_via: neither"), "itself asleep then"),
    (("idle_minutes: 30", "sleep_command: [sudo, '']"), "expected a word"),
    (("AA:bb:cc:dd:ee:ff", "AA:bb"), "a network card's address"),
])
def test_what_an_ollama_host_may_not_say_is_named(change, words):
    assert any(words in line for line in problems(OLLAMA_HOSTS.replace(*change)))

"""What records of releases make of an inventory and a snapshot; what makes a finished model unfit."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.cli.history import history_text
from swarmctl.dispatch.canary import chosen_by, divided, named
from swarmctl.errors import SwarmError
from swarmctl.fleet.holdings import Known, wanted_digests
from swarmctl.fleet.releases import Release, append, next_name, read, standing, wanted, wish_name
from swarmctl.fleet.roles import as_it_stands
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
from swarmctl.inventory import (
    AdapterWish,
    Host,
    Inventory,
    LlamaCppWish,
    ModelWish,
    OllamaWish,
    Placement,
    placement_ports,
)
from swarmctl.learning.fitness import unfit
from swarmctl.ledger import journal
from swarmctl.paths import Paths
from swarmctl.routing.cost import Candidate, Habits
from swarmctl.runtimes.gguf_header import check_whole
from swarmctl.runtimes.ollama_names import ours, release_tag
from swarmctl.shipped import shipped_model

PATHS = Paths.from_environ({"SWARMCTL_HOME": "/nowhere", "HOME": "/"})
SHA = {name: f"{number:08x}" * 8 for number, name in enumerate("abcdef", 1)}
INVENTORY = Inventory(
    hosts=(Host("cpu", "box", llamacpp=LlamaCppWish(port=100),
                models=(Placement("small"), Placement("large"))),
           Host("twin", "box", data_dir="/other", llamacpp=LlamaCppWish(port=103),
                models=(Placement("small", port=110),)),
           Host("gpu", "gpu", ollama=OllamaWish(port=7), models=(Placement("small", context=64),))),
    models={"small": ModelWish("small", "shipped:small"), "large": ModelWish("large", "shipped:large")},
    source="inventory.yaml")


def records(*told: str) -> tuple[Release, ...]:
    """`deploy a`, `share a 0.5`, `promote a` …: a release is called by one letter."""
    found, names = [], {}
    for number, line in enumerate(told):
        action, letter, *rest = line.split()
        names.setdefault(letter, f"v{len(names) + 1}-{SHA[letter][:8]}")
        share = float(rest[0]) if rest and action == "share" else 0.0
        hosts = tuple(rest) if action == "deploy" else ()
        found.append(Release(str(number), "2026-11-23T00:00:00.000Z", action, "small", names[letter],
                             SHA[letter], 1, share, hosts))
    return tuple(found)


def letters(one: Release | None) -> str:
    return "" if one is None else next(letter for letter, sha in SHA.items() if sha == one.sha256)


def short(told: tuple[Release, ...]) -> tuple[str, str, int, str]:
    """Champion, canary, the champion's place, and the champions before it."""
    how = standing(told, "small")
    past = "".join(letters(one) or "." for one in how.past)
    return letters(how.champion), letters(how.canary), how.place, past


def test_without_records_everything_is_as_the_inventory_says():
    assert wanted(INVENTORY, (), PATHS) == INVENTORY
    assert short(()) == ("", "", 0, "")


@pytest.mark.parametrize(("told", "now"), [
    (["deploy a"], ("", "a", 0, "")),
    (["deploy a", "promote a"], ("a", "", 1, ".")),
    (["deploy a", "rollback a"], ("", "", 0, "")),
    (["deploy a", "retire a"], ("", "", 0, "")),
    (["deploy a", "promote a", "rollback a"], ("", "", 0, "")),
    (["deploy a", "promote a", "deploy b"], ("a", "b", 1, ".")),
    (["deploy a", "promote a", "deploy b", "rollback b"], ("a", "", 1, ".")),
    (["deploy a", "promote a", "deploy b", "promote b"], ("b", "", 0, ".a")),
    (["deploy a", "promote a", "deploy b", "promote b", "rollback b"], ("a", "", 1, ".")),
    (["deploy a", "deploy b"], ("", "b", 0, "")),
    (["deploy a", "deploy b", "promote a"], ("a", "", 1, ".")),
    (["deploy a", "promote a", "deploy a"], ("a", "", 1, ".")),
    (["deploy a", "promote a", "promote a"], ("a", "", 1, ".")),
    (["promote a"], ("", "", 0, "")),
    (["rollback a"], ("", "", 0, "")),
    (["refuse a", "share a 0.5"], ("", "", 0, "")),
])
def test_the_standing_follows_from_the_records(told, now):
    assert short(records(*told)) == now


def test_a_share_belongs_to_the_canary_that_stands():
    assert standing(records("deploy a", "share a 0.5"), "small").share == 0.5
    assert standing(records("deploy a", "share b 0.5"), "small").share == 0.0
    assert standing(records("deploy a", "share a 0.5", "promote a"), "small").share == 0.0
    assert standing(records("deploy a"), "large").canary is None


def test_champion_and_canary_take_two_places_in_turn_and_no_server_has_to_move():
    story = ("deploy a", "promote a", "deploy b", "promote b", "deploy c", "rollback c", "deploy d",
             "promote d", "rollback d", "rollback b", "rollback a")
    before: dict[str, dict[str, int]] = {}
    for end in range(len(story) + 1):
        now = {host.name: dict(zip((placement.model for placement in host.models), placement_ports(host),
                                   strict=True))
               for host in wanted(INVENTORY, records(*story[:end]), PATHS).hosts}
        for host, ports in now.items():
            if host != "gpu":
                assert len(set(ports.values())) == len(ports)
            kept = before.get(host, {}).keys() & ports.keys()
            assert {name: ports[name] for name in kept} == {name: before[host][name] for name in kept}
        machines = [port for host in ("cpu", "twin") for port in now[host].values()]
        assert len(set(machines)) == len(machines)
        before = now


def test_a_release_takes_its_models_wishes_and_its_own_file():
    told = records("deploy a", "share a 0.25")
    found = wanted(INVENTORY, told, PATHS)
    name = wish_name("small", told[0].release)
    wish = found.models[name]
    assert (wish.of, wish.served_as, wish.release) == ("small", "small", told[0].release)
    assert (wish.share, wish.canary, wish.sha256) == (0.25, True, SHA["a"])
    assert wish.source == f"/nowhere/data/releases/small/{told[0].release}/model.gguf"
    assert wish.quality["routine"] > 0.9  # what was measured of the shipped one it came from
    assert found.host("gpu").models[1] == Placement(name, context=64)
    assert [placement.model for placement in found.host("cpu").models] == ["small", "large", name]


def test_an_adapter_goes_over_the_weights_that_hosts_hold_and_both_files_are_kept():
    told = list(records("deploy a", "promote a", "deploy b", "promote b"))
    over = {"adapter": SHA["c"], "base": SHA["d"], "over": "v9-00000009"}
    told = [replace(one, **over) if one.release == told[0].release else one for one in told]
    kept = wanted(INVENTORY, told, PATHS, previous=True)
    name = wish_name("small", told[0].release)
    wish = kept.models[name]
    folder = f"/nowhere/data/releases/small/{told[0].release}"
    assert (wish.source, wish.sha256) == (f"{folder}/model.gguf", SHA["d"])
    assert wish.adapter == AdapterWish(f"{folder}/adapter.gguf", SHA["c"], "v9-00000009")
    assert {SHA["c"], SHA["d"]} <= wanted_digests(kept.host("cpu"), kept, Known({}, {}, ()))


def test_a_canary_may_be_wanted_on_some_hosts_and_a_champion_is_wanted_on_all():
    told = records("deploy a gpu")
    name = wish_name("small", told[0].release)
    found = wanted(INVENTORY, told, PATHS)
    assert {host.name for host in found.hosts if name in [one.model for one in host.models]} == {"gpu"}
    found = wanted(INVENTORY, (*told, *records("deploy a", "promote a")[1:]), PATHS)
    assert {host.name for host in found.hosts if name in [one.model for one in host.models]} == {
        "cpu", "twin", "gpu"}


def test_what_a_rollback_returns_to_is_kept():
    told = records("deploy a", "promote a", "deploy b")
    kept = wanted(INVENTORY, told, PATHS, previous=True)
    assert [one.model for one in kept.host("gpu").models] == [
        wish_name("small", told[0].release), wish_name("small", told[2].release), "small"]


def test_the_same_weights_keep_their_name_and_others_get_the_next_number():
    told = records("deploy a", "deploy b")
    assert next_name((), "small", SHA["a"]) == f"v1-{SHA['a'][:8]}"
    assert next_name(told, "small", SHA["b"]) == told[1].release
    assert next_name(told, "small", SHA["c"]) == f"v3-{SHA['c'][:8]}"
    assert next_name(told, "large", SHA["c"]) == f"v1-{SHA['c'][:8]}"
    assert ours(release_tag("team/small:x", "v3-0badcafe")) == ("team/small-x", "v3-0badcafe")
    assert ours("small:v3") is None


def test_records_survive_torn_lines_and_newer_fields(tmp_path):
    paths = Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)})
    made = append(paths, 1_790_000_000.0, action="deploy", model="small", release="v1-00000001",
                  hosts=("gpu",))
    file = paths.journal / "releases.jsonl"
    with file.open("a") as out:
        out.write('{"torn": \n' + json.dumps({**made.to_record(), "id": "x", "newer": 1}) + "\n[]\n")
    found = read(paths)
    assert [one.id for one in found] == [made.id, "x"]
    assert found[0] == made
    assert file in journal.files(paths.journal)
    assert "v1-00000001" in history_text(found)


def served(release: str, **more) -> Served:
    return Served("llamacpp", f"small-{release}", "small", release, "", 1, 1, 1, 1, 1, "F16", 1.0, 1.0,
                  release=release, **more)


def fleet(**hosts) -> Fleet:
    entries = tuple(HostEntry(name, name, "/data", 5.0, 1.0, 1.0, 0.3, "EUR", (), tuple(there))
                    for name, there in hosts.items())
    return Fleet("/i", "", "", None, 30.0, 60.0, entries)


def roles(found: Fleet) -> dict[str, list[tuple[str, bool, float]]]:
    return {host.name: [(one.release, one.canary, one.share) for one in host.served] for host in found.hosts}


def test_roles_turn_in_the_snapshot_at_once():
    told = records("deploy a", "share a 0.25")
    name = told[0].release
    both = fleet(one=[served(""), served(name)], two=[served("")])
    assert roles(as_it_stands(both, told)) == {"one": [("", False, 1.0), (name, True, 0.25)],
                                               "two": [("", False, 1.0)]}
    risen = as_it_stands(both, (*told, *records("deploy a", "promote a")[1:]))
    assert roles(risen) == {"one": [("", True, 0.0), (name, False, 1.0)], "two": [("", True, 0.0)]}
    assert as_it_stands(risen, (*told, *records("deploy a", "promote a")[1:])) == risen


def test_an_older_release_is_better_than_none():
    told = records("deploy a", "promote a")
    assert roles(as_it_stands(fleet(one=[served("")]), told)) == {"one": [("", False, 1.0)]}


def candidate(release: str, host: str = "h", model: str = "small", **more) -> Candidate:
    return Candidate(host, "llamacpp", f"{model}-{release}", model, release, "", 1, 1, 1, 1, Habits(1.0, 1.0),
                     release=release, **more)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_everybody_it_had(conversations, one, other):
    less, more = sorted((one, other))
    assert all(chosen_by(name, more) for name in conversations if chosen_by(name, less))
    assert not any(chosen_by(name, 0.0) for name in conversations)
    assert all(chosen_by(name, 1.0) for name in conversations)


def test_a_share_is_that_share_of_all_conversations():
    names = [f"conversation-{number}" for number in range(4000)]
    assert 0.27 < sum(chosen_by(name, 0.3) for name in names) / len(names) < 0.33


def test_a_conversation_is_divided_between_champion_and_canary():
    champion, canary = candidate(""), candidate("v1", canary=True, share=0.5)
    other = candidate("", model="large")
    everybody = (champion, canary, other)
    inside = next(str(number) for number in itertools.count() if chosen_by(str(number), 0.5))
    outside = next(str(number) for number in itertools.count() if not chosen_by(str(number), 0.5))
    assert divided(everybody, None, inside) == ((canary, other), (champion,))
    assert divided(everybody, None, outside) == ((champion, other), ())
    assert divided(everybody, None, "") == ((champion, other), ())
    assert divided((canary,), "small:v1", outside) == ((canary,), ())
    hidden = replace(canary, share=0.0)
    assert divided((champion, hidden), "small", inside) == ((champion,), ())


def test_a_name_of_the_inventory_that_ends_in_latest_is_meant_without_it_too():
    tagged = candidate("", model="qwen:latest")
    assert (named(tagged, "qwen"), named(tagged, "qwen:latest"), named(tagged, "qwe")) == (True, True, False)
    assert not named(candidate("", model="qwen:4b"), "qwen")


SMOKE = {"messages": [{"role": "user", "content": "Hello"}], "answer": "Hi", "finish": "stop", "tokens": 3}
GOOD = {"quantise": {"kind": "Q8_0"}, "perplexity": {"kl_mean": 0.002, "perplexity_ratio": 1.01},
        "verify": {"ending": {"token": "</s>", "id": 2}, "served_ending": "</s>", "differ": [],
                   "smoke": [SMOKE], "conversations": 5}}


@pytest.mark.parametrize(("stage", "more", "reason"), [
    ("verify", {"ending": {"token": None, "id": None}}, "lost its end-of-sequence token"),
    ("verify", {"served_ending": "<pad>"}, "ends with '</s>', and the GGUF with '<pad>'"),
    ("verify", {"smoke": [{**SMOKE, "finish": "length", "tokens": 256}]},
     "1 of 1 answers did not end by themselves within 256 tokens"),
    ("verify", {"smoke": [{**SMOKE, "answer": " \n"}]}, "1 of 1 answers were empty"),
    ("verify", {"differ": [{"messages": [], "trained": "<|user|>Hello", "served": "### Hello"}]},
     "the served chat template of 1 of 5 conversations differ"),
    ("verify", {"differ": [{"messages": [], "trained": [1, 2, 3], "served": [1, 9]}]},
     "they part at position 1"),
    ("verify", {"changed": [{"messages": [], "trained": "a", "served": "b"}]},
     "not the one it was trained with"),
    ("verify", {"broken": "llama-server does not come up"}, "llama-server does not come up"),
    ("perplexity", {"kl_mean": 0.02}, "a mean divergence of 0.02 nats from 16 bits, and 0.01 is the bound"),
    ("perplexity", {"kl_mean": float("nan")}, "a mean divergence of nan"),
])
def test_what_makes_a_model_unfit_is_said_with_its_numbers(stage, more, reason):
    assert unfit(GOOD, "Q8_0") == ()
    (found,) = unfit({**GOOD, stage: {**GOOD[stage], **more}}, "Q8_0")
    assert reason in found


def test_a_bound_may_be_set_and_a_gguf_alone_has_fewer_proofs():
    assert unfit({**GOOD, "perplexity": {"kl_mean": 0.02}}, "Q8_0", max_kl=0.05) == ()
    assert unfit({"verify": {"differ": [], "smoke": [SMOKE], "served_ending": "</s>"}}, "F16") == ()


def test_a_gguf_cut_anywhere_is_known_by_its_size(tmp_path: Path):
    whole = (shipped_model("small") / "model.gguf").read_bytes()
    file = tmp_path / "model.gguf"
    file.write_bytes(whole)
    assert check_whole("small", file) == 20
    for size in (len(whole) - 1, len(whole) // 2, 5000, 100, 3, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(SwarmError, match=r"was cut off: its 20 tensors|is not a whole GGUF file"):
            check_whole("small", file)

"""What swarmctl wrote itself and finds spoilt: the field is named, and nothing of a wrong type is used."""

from __future__ import annotations

import copy
import json

import pytest
from gateways import host, served
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.dispatch.breakers import read_breaker
from swarmctl.dispatch.habits import read_habits
from swarmctl.errors import SwarmError
from swarmctl.fleet.snapshot import Fleet, read_fleet, write_fleet
from swarmctl.fleet.standing import read_aside
from swarmctl.gateway.keys import Key, add_key, keys_file, read_keys
from swarmctl.paths import Paths
from swarmctl.routing.breaker import CLOSED

FLEET = Fleet("/etc/inventory.yaml", "0" * 64, "2026-01-01T00:00:00Z", None, 30.0, 60.0,
              (host("spinoza", served("llamacpp", "tiny", 8000, quality={"routine": 0.9},
                                      files=(("ab", 3),))),))
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none()) | \
    st.dictionaries(st.text(), st.integers())


@pytest.fixture
def paths(tmp_path):
    return Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)})


@pytest.mark.parametrize(("old", "new", "said"), [
    ('"port": 8000', '"port": "x"', 'hosts.0.served.0.port is "x", not int'),
    ('"ssh": "local"', '"ssh": null', "hosts.0.ssh is null, not str"),
    ('"routine": 0.9', '"routine": []', 'hosts.0.served.0.quality is {"routine": []}, not Mapping'),
    ('"value_of_time": 30.0', '"value_of_time": NaN', "NaN is no number"),
    ('"runtime": "llamacpp"', '"runtime": "x"', "hosts.0.served.0.runtime is 'x', none of llamacpp"),
    ('"hosts": [', '"herds": [', "hosts is null, not a list"),
    ('"data_dir": "/tmp",', "", "hosts.0 lacks data_dir"),
    ('"explore": 0.03', '"explore": 0.03, "bold": 1', "routing.bold is no field that this version knows"),
    ('"version": 1', '"version": 7', "not of version 1"),
    ('"version": 1,', '"version": 1', "line 3, column 2"),
])
def test_a_spoilt_snapshot_names_its_field(paths, old, new, said):
    write_fleet(paths.fleet, FLEET)
    text = paths.fleet.read_text()
    assert old in text
    paths.fleet.write_text(text.replace(old, new))
    with pytest.raises(SwarmError) as caught:
        read_fleet(paths.fleet)
    assert str(paths.fleet) in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.hint == "`swarmctl up` writes it anew"


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"version": 1, "hosts": 3}'])
def test_what_is_no_snapshot_at_all_is_said_to_be_none(paths, raw):
    paths.fleet.parent.mkdir(parents=True)
    paths.fleet.write_bytes(raw)
    with pytest.raises(SwarmError, match="cannot be read as a fleet snapshot: "):
        read_fleet(paths.fleet)


def test_a_snapshot_comes_back_as_it_was_written(paths):
    write_fleet(paths.fleet, FLEET)
    assert read_fleet(paths.fleet) == FLEET


@given(st.data())
def test_whatever_becomes_of_a_field_is_the_right_type_or_an_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any-fleet.json"
    write_fleet(file, FLEET)
    whole = json.loads(file.read_text())
    part = data.draw(st.sampled_from([(), ("hosts", 0), ("hosts", 0, "served", 0), ("routing",)]))
    spoilt = copy.deepcopy(whole)
    inner = spoilt
    for step in part:
        inner = inner[step]
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(ANYTHING)
    file.write_text(json.dumps(spoilt))
    try:
        found = read_fleet(file)
    except SwarmError:
        return
    write_fleet(file, found)
    assert read_fleet(file) == found


@pytest.mark.parametrize(("change", "said"), [
    ({"requests_per_minute": "60"}, 'keys.0.requests_per_minute is "60", not int | None'),
    ({"at_once": 0}, "keys.0.at_once is 0; at least 1"),
    ({"sha256": None}, "keys.0.sha256 is null, not str"),
    ({"scopes": ["ask", "fly"]}, "keys.0.scopes has 'fly', none of ask"),
])
def test_a_spoilt_key_names_its_field_and_lets_nobody_in(paths, change, said):
    add_key(paths, Key("ann", "", "2026-11-23T00:00:00Z"))
    raw = json.loads(keys_file(paths).read_text())
    raw["keys"][0].update(change)
    keys_file(paths).write_text(json.dumps(raw))
    with pytest.raises(SwarmError) as caught:
        read_keys(keys_file(paths))
    assert said in str(caught.value)


@pytest.mark.parametrize("change", [{"prefill_speed": float("nan")}, {"service_seconds": float("inf")},
                                    {"characters_per_token": 0}, {"answer_tokens": {"routine": "x"}}])
def test_spoilt_habits_fall_back_to_what_up_measured(paths, change):
    one = served("llamacpp", "tiny", 8000)
    file = paths.state / "habits" / f"spinoza@{one.server}.json"
    file.parent.mkdir(parents=True)
    good = {"digest": one.digest, "prefill_speed": 7.0, "decode_speed": 7.0, "answer_tokens": {}}
    file.write_text(json.dumps(good))
    assert read_habits(paths, "spinoza", one).decode_speed == 7.0
    file.write_text(json.dumps({**good, **change}))
    assert read_habits(paths, "spinoza", one).decode_speed == one.decode_speed


@pytest.mark.parametrize("text", ["", "nope", "[" * 100_000, '{"state": "cordoned", "since": NaN}',
                                  '{"state": "cordoned", "since": 1e308}'])
def test_spoilt_notes_on_a_host_keep_it_cordoned_and_its_breaker_closed(paths, text):
    for folder, name in (("standing", "spinoza"), ("breakers", "spinoza@one")):
        (paths.state / folder).mkdir(parents=True)
        (paths.state / folder / f"{name}.json").write_text(text)
    assert "cordoned since" in read_aside(paths, "spinoza").why
    assert read_breaker(paths, "spinoza", "one") == CLOSED

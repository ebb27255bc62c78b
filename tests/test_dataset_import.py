"""`dataset build --from`: Open WebUI's exports and the common JSON forms, and files that hold anything at
all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import paths_under
from running import Cli

from swarmctl.errors import UsageError
from swarmctl.learning.forms import read
from swarmctl.learning.imported import Imported
from swarmctl.ledger.parquet import read_json_rows
from swarmctl.verbs.dataset import Wanted, build

NOW = 1_795_300_000.0


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def message(identity, parent, role, content, children=(), **more):
    return {"id": identity, "parentId": parent, "childrenIds": list(children), "role": role,
            "content": content,
            "timestamp": 1_730_000_000, **more}


def answer(identity, parent, content, **more):
    return message(identity, parent, "assistant", content, model="llama3:8b", done=True, **more)


def chat(*messages, identity="c1", system="be kind"):
    """As Open WebUI exports a chat."""
    return {"id": identity, "user_id": "u1", "title": "a chat", "updated_at": 1_730_000_000,
            "created_at": 1_730_000_000,
            "chat": {"id": identity, "models": ["llama3:8b"], "params": {"system": system},
                     "history": {"messages": {one["id"]: one for one in messages},
                                 "currentId": messages[-1]["id"]},
                     "messages": list(messages)}}


def feedback(identity, of, snapshot, rating, fine=None, user="u1", **data):
    """As /api/v1/evaluations/feedbacks/all/export gives one."""
    return {"id": identity, "user_id": user, "version": 0, "type": "rating",
            "data": {"rating": rating, "model_id": "llama3:8b", "sibling_model_ids": None,
                     "reason": "accurate",
                     "comment": "", "tags": [], "details": {"rating": fine}, **data},
            "meta": {"model_id": "llama3:8b", "message_id": of, "message_index": 2, "chat_id": snapshot["id"],
                     "base_models": {}},
            "snapshot": {"chat": snapshot}, "created_at": 1_730_000_000, "updated_at": 1_730_000_000}


def rows_from(paths, tmp_path, found, kind="dpo", name="file.json", **wanted):
    path = tmp_path / name
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    built = build(paths, Wanted(kind=kind, files=(path,), only=True, **wanted), NOW)
    files = (built.snapshot.folder / f"{split}.parquet" for split in ("train", "heldout"))
    return [row for file in files for row in read_json_rows(file)], built


@pytest.fixture
def split_free(monkeypatch):
    """Nothing is held out, so that one row is enough for a dataset."""
    monkeypatch.setattr("swarmctl.learning.refine.held_out", lambda _: False)


pytestmark = pytest.mark.usefixtures("split_free")

ASKED = message("m1", None, "user", "why is the sky blue?", ["m2", "m3"])
WORSE, BETTER = answer("m2", "m1", "because"), answer("m3", "m1", "Rayleigh scattering")


def test_open_webuis_feedbacks_pair_a_liked_answer_with_a_regenerated_one(paths, tmp_path):
    whole = chat(ASKED, WORSE, BETTER)
    rows, built = rows_from(paths, tmp_path, [feedback("f1", "m2", whole, -1, 2), feedback("f2", "m3", whole,
                                                                                           "1", 9)])
    assert rows[0]["prompt"] == [{"role": "system", "content": "be kind"},
                                 {"role": "user", "content": "why is the sky blue?"}]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "Rayleigh scattering"}]
    assert built.card["sources"] == {"regenerated": 1}
    assert built.card["imported"] == ["file.json"]
    assert built.card["until"] == ""


def test_open_webuis_arena_is_a_choice_between_models_side_by_side(paths, tmp_path):
    whole = chat(ASKED, WORSE, BETTER)
    rows, built = rows_from(paths, tmp_path, [feedback("f1", "m3", whole, 1, sibling_model_ids=["mistral"])])
    assert rows[0]["rejected"][0]["content"] == "because"
    assert built.card["sources"] == {"choice": 1}


def test_an_answer_that_was_edited_in_open_webui_is_a_correction(paths, tmp_path):
    edited = answer("m2", "m1", "Rayleigh scattering", originalContent="because")
    rows, built = rows_from(paths, tmp_path, [chat(ASKED, edited)])
    assert (rows[0]["chosen"][0]["content"], rows[0]["rejected"][0]["content"]) == ("Rayleigh scattering",
                                                                                    "because")
    assert built.card["sources"] == {"correction": 1}


def test_earlier_turns_are_part_of_the_prompt_and_thoughts_are_not(paths, tmp_path):
    thought = '<details type="reasoning" done="true">\n<summary>Thought</summary>\n> hm\n</details>\nearlier'
    whole = chat(message("m0", None, "user", "hello", ["a0"]), answer("a0", "m0", thought, ),
                 {**ASKED, "parentId": "a0"}, {**WORSE, "annotation": {"rating": -1}},
                 {**BETTER, "annotation": {"rating": 1}}, system="")
    rows, _ = rows_from(paths, tmp_path, [whole])
    assert [turn["content"] for turn in rows[0]["prompt"]] == ["hello", "earlier", "why is the sky blue?"]


@pytest.mark.parametrize(("messages", "reason"), [
    ((ASKED, {**WORSE, "error": {"content": "x"}, "originalContent": "y"}), "failed"),
    (({**ASKED, "files": [{"type": "image"}]}, {**WORSE, "originalContent": "y"}),
     "asked of a picture or a file"),
    (({**ASKED, "id": "else"}, {**WORSE, "originalContent": "y"}), "a chat with a hole in it"),
    ((ASKED, WORSE), "a chat in which nothing was rated"),
])
def test_what_open_webui_holds_and_nobody_can_learn_from_is_counted(paths, tmp_path, messages, reason):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    _, built = rows_from(paths, tmp_path, [chat(*messages), good])
    assert built.card["dropped"] == {reason: 1}


PREFERENCES = [
    {"prompt": "why?", "chosen": "so", "rejected": "no"},
    {"prompt": [{"role": "user", "content": "why?"}], "chosen": [{"role": "assistant", "content": "so"}],
     "rejected": [{"role": "assistant", "content": "no"}]},
    {"chosen": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}],
     "rejected": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "no"}]},
    {"prompt": "why?", "chosen": [{"role": "user", "content": "why?"}, {"role": "assistant",
                                                                        "content": "so"}],
     "rejected": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "no"}]},
    {"input": {"messages": [{"role": "user", "content": "why?"}]},
     "preferred_output": [{"role": "assistant", "content": "so"}],
     "non_preferred_output": [{"role": "assistant", "content": "no"}]},
]


@pytest.mark.parametrize("item", PREFERENCES)
def test_every_form_of_a_preference_is_the_same_pair(paths, tmp_path, item):
    rows, _ = rows_from(paths, tmp_path, json.dumps(item))
    assert rows == [{"prompt": [{"role": "user", "content": "why?"}],
                     "chosen": [{"role": "assistant", "content": "so"}],
                     "rejected": [{"role": "assistant", "content": "no"}]}]
    rows, _ = rows_from(paths, tmp_path, json.dumps(item), "kto")
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [("so", True), ("no", False)]


@pytest.mark.parametrize("item", [
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "why?"},
                  {"role": "assistant", "content": "so"}]},
    {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": [{"type": "text",
                                                                                       "text": "why?"}]},
                  {"role": "assistant", "content": "so"}]},
    {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "why?"},
                       {"from": "gpt", "value": "so"}]},
    {"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}], "system": "s"},
    {"prompt": "why?", "completion": "so", "system": "s"},
    {"instruction": "why?", "input": "", "output": "so", "system": "s"},
])
def test_every_form_of_a_chat_is_the_same_example(paths, tmp_path, item):
    rows, _ = rows_from(paths, tmp_path, json.dumps([item]), "sft")
    assert rows == [{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "why?"}],
                     "completion": [{"role": "assistant", "content": "so"}]}]


def test_labels_of_one_prompt_become_a_pair(paths, tmp_path):
    lines = "\n".join(json.dumps({"prompt": "why?", "completion": text, "label": good})
                      for text, good in (("so", True), ("no", False)))
    rows, built = rows_from(paths, tmp_path, lines, name="labels.jsonl")
    assert rows[0]["chosen"][0]["content"] == "so"
    lineage = read_json_rows(built.snapshot.folder / "lineage.parquet")
    assert lineage[0]["origin"].endswith("labels.jsonl line 1")


GOOD = json.dumps({"prompt": "why?", "chosen": "so", "rejected": "no"})


@pytest.mark.parametrize(("text", "complaint"), [
    (f"{GOOD}\n{{broken\n{GOOD}", "file.json line 2: not JSON"),
    (f"{GOOD}\n\n[1]\n", "file.json line 3: not a JSON object"),
    (f'{GOOD}\n{{"foo": 1}}', "file.json line 2: none of the known forms (its keys: foo)"),
    (f"[{GOOD},\n {GOOD},\n {{bad}}]", "file.json line 3: not JSON from here on"),
    (f"[{GOOD},\n {GOOD}", "the JSON array is cut off"),
    (f'{GOOD}\n{{"messages": [{{"role": "wizard", "content": "x"}}]}}', "line 2: 'wizard' is no role"),
    (f'{GOOD}\n{{"prompt": "p", "completion": "c", "label": "yes"}}', "line 2: label must be true or false"),
    (f'{GOOD}\n{{"prompt": "", "chosen": "a", "rejected": "b"}}', "line 2: an empty prompt"),
])
def test_a_line_in_no_known_form_is_named_and_nothing_is_written(paths, tmp_path, text, complaint):
    with pytest.raises(UsageError) as caught:
        rows_from(paths, tmp_path, text)
    assert complaint in caught.value.hint
    assert not paths.datasets.exists()
    rows, built = rows_from(paths, tmp_path, text, skip_bad=True)
    assert len(rows) == 1
    assert built.card["dropped"]["in no known form"] == 1


def test_a_file_that_is_not_there_or_not_utf_8_is_named(paths, tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        build(paths, Wanted(files=(tmp_path / "none",), only=True), NOW)
    (tmp_path / "latin").write_bytes(GOOD.encode() + b"\n\xe4\n")
    with pytest.raises(UsageError, match="line 2 is not UTF-8"):
        build(paths, Wanted(files=(tmp_path / "latin",), only=True), NOW)


def test_half_a_surrogate_pair_does_not_stop_the_writing(paths, tmp_path):
    rows, _ = rows_from(paths, tmp_path, '{"prompt": "p \\ud800", "chosen": "a", "rejected": "b"}')
    assert rows[0]["prompt"][0]["content"] == "p \\ud800"


KEYS = st.sampled_from(["prompt", "chosen", "rejected", "completion", "label", "messages", "conversations",
                        "chat",
                        "history", "data", "type", "rating", "meta", "snapshot", "role", "content", "from",
                        "value",
                        "message_id", "m1", "parentId", "childrenIds", "annotation", "updated_at", "details",
                        "id"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "m1", 1, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20)


@settings(max_examples=300, deadline=None)
@given(found=st.dictionaries(KEYS, ANYTHING, max_size=6))
def test_any_json_is_taken_in_or_named_and_never_a_crash(found):
    into = Imported()
    read("any", json.dumps(found), into)
    assert len(into.bad) <= 1


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_taken_in_or_named_and_never_a_crash(text):
    read("any", text, Imported())


def test_a_person_imports_and_is_told_what_is_wrong(paths, tmp_path):
    lines = [json.dumps({"prompt": f"what of {n} and the {n} kings?", "chosen": f"so {n}",
                         "rejected": f"no {n}"})
             for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines, "garbage"]))
    cli = Cli(paths, tmp_path)
    refused = cli.run("dataset", "build", "--from", str(tmp_path / "pairs.jsonl"), status=2)
    assert "pairs.jsonl line 41: not JSON" in refused.stderr
    assert "(40 import)" in cli.run("dataset", "build", "--from", str(tmp_path / "pairs.jsonl"),
                                    "--skip-bad").stdout

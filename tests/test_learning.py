"""The rules of what becomes training data, as data: the frozen split, near duplicates, secrets, approval."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.exchange import Message
from swarmctl.learning.approval import wilson
from swarmctl.learning.flags import flags, iban, luhn, personal, secrets
from swarmctl.learning.near import NEAR, duplicates, near_any, near_pairs, similarity, text_of
from swarmctl.learning.split import group_of, held_out


def prompt(text, system=None):
    return (*([Message("system", system)] if system else []), Message("user", text))


def test_the_split_is_frozen_for_ever():
    # Changing any of these would train on what an earlier model was measured with.
    assert group_of(prompt("What is two and two?")) == (
        "1dc541539263fed7bdaf36ec7593a29f5f53159e64497fd788a555340e45b3a8")
    assert [n for n in range(12) if held_out(f"group {n}")] == [4, 10]


def test_a_group_does_not_mind_case_and_white_space_and_minds_the_system_prompt():
    assert group_of(prompt(" What is\ntwo? ")) == group_of(prompt("what is two?"))
    assert group_of(prompt("what is two?", "be brief")) != group_of(prompt("what is two?"))
    earlier = (Message("user", "hello"), Message("assistant", "hi"), *prompt("what is two?"))
    assert group_of(earlier) == group_of(prompt("what is two?"))


def test_about_fifteen_of_a_hundred_groups_are_held_out():
    share = sum(held_out(str(n)) for n in range(20_000)) / 20_000
    assert 0.14 < share < 0.16


LONG = "the ferry crossed the great river of the north at night while the lamps of the harbour burned"


@pytest.mark.parametrize(("one", "other", "near"), [
    (LONG, LONG.upper() + "  ", True),
    (f"{LONG} and shone over the quiet water", f"{LONG} and shone over the quiet sea", True),
    ("what is the capital of france?", "what is the capital of spain?", False),
    (f"{LONG} 3 plus 4", f"{LONG} 3 plus 5", False),
    ("yes", "yes", True), ("yes", "no", False), ("", "", True),
])
def test_near_is_nearly_the_same_words_and_the_same_numbers(one, other, near):
    assert (similarity(text_of(one), text_of(other)) >= NEAR) is near
    assert (list(near_pairs([one, other])) == [(0, 1)]) is near


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "1"]), max_size=12).map(" ".join)


@given(texts=st.lists(WORDS, max_size=12), threshold=st.sampled_from([0.3, 0.5, 0.85, 1.0]))
def test_the_index_misses_no_pair(texts, threshold):
    prepared = [text_of(text) for text in texts]
    every = {(one, other) for other in range(len(texts)) for one in range(other)
             if similarity(prepared[one], prepared[other]) >= threshold}
    assert set(near_pairs(texts, threshold)) == every


def test_rows_are_duplicates_only_where_all_their_texts_are_near():
    rows = [(LONG, "yes"), (LONG, "yes"), (LONG, "no"), ("other", "yes")]
    assert duplicates(rows) == {1: 0}
    assert near_any([LONG, "other"], [LONG.title()]) == {0}


@pytest.mark.slow
def test_ten_thousand_prompts_are_compared_in_seconds():
    drawn = random.Random(5)
    texts = [" ".join(drawn.choices(LONG.split() + [str(n) for n in range(3000)], k=30))
             for n in range(10_000)]
    texts += [f"{text} indeed" for text in texts[:500]]
    began = time.process_time()
    assert len(list(near_pairs(texts))) == 500
    assert time.process_time() - began < 60


@pytest.mark.parametrize(("text", "name"), [
    ("-----BEGIN OPENSSH " + "PRIVATE KEY-----", "private key"), ("AKIA" + "QWERTYUIOPASDFGH", "AWS key"),
    ("ghp_" + "a1B2" * 9, "GitHub token"), ("glpat-" + "x1Y2" * 6, "GitLab token"),
    ("xoxb-" + "123456789012-abc", "Slack token"), ("sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", "Stripe key"),
    ("AIza" + "Sy" + "a1B" * 11, "Google key"), ("sk-proj-" + "a1B2" * 10, "OpenAI key"),
    ("sk-ant-api03-" + "a1B2" * 10, "Anthropic key"), ("hf_" + "aBcD" * 8 + "eF", "Hugging Face token"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0" + ".abcdefghijklmnop", "JSON web token"),
    ("postgres://admin:Tr0ub4dor3@db:5432/x", "password in a URL"),
    ("Authorization: Bearer " + "q8f7w6e5r4t3y2u1", "authorisation header"),
    ('db_password = "kX9' + '#mQ2$vL7"', "password"), ("'api_key': '" + "9fK2mQ7xR4vL8'", "password"),
])
def test_each_kind_of_secret_is_seen(text, name):
    assert name in set(secrets(f"please look at {text} for me"))


@pytest.mark.parametrize("text", [
    'password = "your-password"', "https://user:password@host", 'api_key = "${API_KEY}"',
    "sk-learn is a library",
    "password: 'changeme'", 'token = "xxxxxxxxxxxx"', "the password is hunter", 'password = "%s"',
    "git@github.com:a/b.git", "sha256:" + "ab" * 32, "AKIA is a prefix",
])
def test_what_only_looks_like_a_secret_is_none(text):
    assert list(secrets(text)) == []


@pytest.mark.parametrize(("text", "name"), [
    ("write to anna.smith+x@firma.co.uk", "e-mail address"), ("call +49 170 1234567 now", "phone number"),
    ("call (415) 555-2671", "phone number"), ("030/1234567", "phone number"),
    ("card 4111 1111 1111 1111", "card number"), ("DE89 3704 0044 0532 0130 00", "IBAN"),
    ("GB82WEST12345698765432", "IBAN"), ("my number is 078-05-1120", "social security number"),
])
def test_each_kind_of_personal_data_is_seen(text, name):
    assert name in set(personal(f"{text}, please"))


@pytest.mark.parametrize("text", [
    "a@example.com", "root@localhost", "x@foo.test", "version 1.2.3-4", "2026-11-23 10:00",
    "4111 1111 1111 1112",
    "DE88 3704 0044 0532 0130 00", "1000000 rows in 20 s", "1234567890123456", "192.168.1.1",
    "pi is 3.14159265358979",
    "from 1914 to 1918", "port 8080-8090", "commit 1234567", "SELECT a FROM b WHERE c = 12345678",
])
def test_what_only_looks_personal_is_not(text):
    assert list(personal(text)) == []


@given(text=st.text(max_size=300))
def test_any_text_can_be_looked_through(text):
    assert isinstance(flags(text), tuple)


def test_a_long_text_is_looked_through_in_time():
    began = time.process_time()
    for text in ("a" * 200_000, "1 " * 100_000, "a.b@" * 50_000, "x:y@" * 50_000, "password=" * 20_000):
        flags(text)
    assert time.process_time() - began < 20


def test_checksums_tell_cards_and_ibans_from_numbers():
    assert luhn("5555 5555 5555 4444")
    assert not luhn("5555 5555 5555 4445")
    assert iban("FR14 2004 1010 0505 0001 3M02 606")
    assert not iban("FR14 2004 1010 0505 0001 3M02 607")


def test_wilsons_interval_is_his():
    # Newcombe 1998, table I, method 3: 81/263 → .2553 to .3662; 0/20 → 0 to .1611; 1/29 → .0061 to .1718.
    for good, votes, low, high in ((81, 263, .2553, .3662), (0, 20, 0, .1611), (1, 29, .0061, .1718)):
        found = wilson(good, votes)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert wilson(0, 0).share is None
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)

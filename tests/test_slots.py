"""Slots and the queue, with real processes: who gets the last one, what a kill frees, who comes next."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from recorded import paths_under
from test_routing import SMALL, TARIFF

from swarmctl.dispatch.admission import TERMS, admit
from swarmctl.dispatch.queue import Ticket, empty, length, name_of
from swarmctl.dispatch.slots import claim, claimed, freed_at
from swarmctl.dispatch.swarm import Swarm
from swarmctl.fleet.snapshot import Fleet, HostEntry
from swarmctl.routing.cost import Question, Standing, price
from swarmctl.routing.waiting import AGEING, Waiter, before, turn
from swarmctl.runtimes.http import Hangup, HungUp, until

HERE = replace(SMALL, host="spinoza", server="llamacpp-small")

#: A process that does as its stdin says, a word a line, and answers with a line.
CLAIMER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from recorded import paths_under
from test_routing import SMALL
from swarmctl.dispatch.queue import Ticket
from swarmctl.dispatch.slots import claim
paths, here = paths_under(Path(sys.argv[1])), replace(SMALL, host="spinoza", server="llamacpp-small")
held = []
for line in sys.stdin:
    word, *numbers = line.split()
    if word == "claim":
        slot = claim(paths, here, *map(int, numbers))
        held += [slot] if slot else []
        print("won" if slot else "lost", flush=True)
    elif word == "wait":
        held.append(Ticket(paths, float(numbers[0])))
        print(held[-1].name, flush=True)
    elif word == "free":
        while held:
            held.pop().close()
        print("freed", flush=True)
"""


class Claimer:
    """Another process."""

    def __init__(self, tmp_path, tests) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", CLAIMER, str(tmp_path), str(tests)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, *words) -> None:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def said(self) -> str:
        return self.process.stdout.readline().strip()

    def do(self, *words) -> str:
        self.tell(*words)
        return self.said()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


@pytest.fixture
def others(tmp_path, request):
    made = [Claimer(tmp_path, request.path.parent) for _ in range(2)]
    yield made
    for one in made:
        one.kill()


def test_two_processes_never_both_take_the_last_slot(others):
    for _ in range(100):
        for one in others:
            one.tell("claim", 1)
        assert sorted(one.said() for one in others) == ["lost", "won"]
        for one in others:
            one.do("free")


def test_they_never_take_more_than_what_others_leave(others, paths):
    for _ in range(30):
        for one in others:
            one.tell("claim", 3, 1)
        assert [one.said() for one in others] == ["won", "won"], "three slots, one of them in others' use"
        assert claim(paths, HERE, 3, 1) is None
        assert others[0].do("claim", 3, 1) == "lost"
        for one in others:
            one.do("free")


def test_a_claim_counts_at_once_and_a_killed_process_holds_nothing(others, paths):
    assert others[0].do("claim", 2) == "won"
    assert others[1].do("claim", 2) == "won"
    assert claimed(paths, HERE, 2) == 2
    assert claim(paths, HERE, 2) is None
    others[0].kill()
    assert claimed(paths, HERE, 2) == 1
    with claim(paths, HERE, 2) as slot:
        assert slot.company in (0, 1)
        assert claim(paths, HERE, 2) is None
    assert claimed(paths, HERE, 2) == 1


def test_threads_of_one_process_share_slots_like_processes(paths):
    held, refused, together = [], [], threading.Barrier(16)

    def take() -> None:
        together.wait(10)
        slot = claim(paths, HERE, 4)
        (held if slot else refused).append(slot)

    threads = [threading.Thread(target=take, daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(held), len(refused)) == (4, 12)
    for slot in held:
        slot.close()
        slot.close()
    assert claimed(paths, HERE, 4) == 0


def test_servers_do_not_share_slots(paths):
    with claim(paths, HERE, 1):
        assert claim(paths, replace(HERE, server="another"), 1) is not None
        assert claim(paths, replace(HERE, host="worlock"), 1) is not None
        assert claim(paths, HERE, 1) is None


def test_freeing_leaves_its_mark_for_who_waits(paths):
    before_ = freed_at(paths)
    claim(paths, HERE, 1).close()
    first = freed_at(paths)
    claim(paths, HERE, 1).close()
    assert before_ < first < freed_at(paths)


def test_a_state_folder_that_cannot_be_written_keeps_no_question_from_being_asked(paths):
    paths.state.parent.mkdir(parents=True, exist_ok=True)
    paths.state.write_text("a file where a folder should be")
    with claim(paths, HERE, 1), claim(paths, HERE, 1):
        assert claimed(paths, HERE, 1) == 0


def test_equals_wait_in_the_order_in_which_they_came(paths):
    with Ticket(paths, 1.0) as first, Ticket(paths, 2.0) as second, Ticket(paths, 3.0) as third:
        assert [one.line()[1] for one in (first, second, third)] == [0, 1, 2]
        assert [one.line()[2] for one in (first, second, third)] == [2, 1, 0]
        first.close()
        assert [one.line()[1] for one in (second, third)] == [0, 1]


def long_and_short():
    return tuple([price(Question("code", 9, max_tokens=tokens), HERE, Standing(slots=1), TARIFF)]
                 for tokens in (200, 20))


def test_the_important_come_earlier_and_time_makes_up_for_it():
    _, short = long_and_short()
    now, plain = 1000.0, turn(1000.0, 0, short)
    assert turn(now + 1, 1, short) < plain
    assert turn(now + AGEING + 1, 1, short) > plain


def test_a_short_question_overtakes_a_long_one_for_as_long_as_that_takes():
    long, short = long_and_short()
    takes = long[0].decode - short[0].decode
    assert turn(1000.0 + 0.9 * takes, 0, short) < turn(1000.0, 0, long) < turn(1000.0 + 1.1 * takes, 0, short)


def test_who_waits_for_another_server_is_not_in_the_way(paths):
    here, elsewhere = name_of(HERE), name_of(replace(HERE, host="worlock"))
    with Ticket(paths, 1.0) as first, Ticket(paths, 2.0) as second, Ticket(paths, 3.0) as third:
        mine = Waiter(third.turn, {})
        assert before(here, mine, third.line()[0]) == 2, "who has not said yet wants everything"
        first.wants({elsewhere: 0.0})
        second.wants({elsewhere: 0.0, here: 0.0})
        assert before(here, mine, third.line()[0]) == 1
        assert before(elsewhere, mine, third.line()[0]) == 2
        second.wants({elsewhere: 0.0})
        assert before(here, mine, third.line()[0]) == 0


def test_where_its_conversation_is_cached_it_comes_some_seconds_earlier(paths):
    here, elsewhere = name_of(HERE), name_of(replace(HERE, host="worlock"))
    with Ticket(paths, 1.0) as first, Ticket(paths, 2.0) as second, Ticket(paths, 9.0) as late:
        for one in (first, second, late):
            one.wants({here: 3.0 if one is second else 0.0, elsewhere: 0.0})
        assert before(here, Waiter(first.turn, {here: 0.0}), first.line()[0]) == 1
        assert before(elsewhere, Waiter(first.turn, {}), first.line()[0]) == 0
        assert before(here, Waiter(second.turn, {here: 3.0}), second.line()[0]) == 0
        assert first.line()[1:] == (0, 2), "its place in line is as it was"


@pytest.mark.parametrize("said", ["x", "spinoza@s", "spinoza@s much\n", "\0"])
def test_garbage_in_a_ticket_is_in_the_way_and_breaks_nothing(paths, said):
    with Ticket(paths, 1.0) as first, Ticket(paths, 2.0) as second:
        (paths.state / "queue" / first.name).write_text(said)
        assert before(name_of(HERE), Waiter(second.turn, {}), second.line()[0]) == 1


def test_who_is_gone_leaves_the_queue_at_once(paths):
    """As a client of the gateway that hangs up while its question waits."""
    entry = HostEntry(HERE.host, "local", "/tmp", 2.0, 1.0, 1.0, 0.3, "EUR", (), ())
    swarm = Swarm(paths, Fleet("i", "d", "w", None, 30.0, 60.0, (entry,)), (HERE,))
    hangup, ended = Hangup(), []

    def ask() -> None:
        with until(hangup), pytest.raises(HungUp):
            admit(swarm, [price(Question("routine", 9), HERE, Standing(slots=1), TARIFF)], TERMS)
        ended.append(time.monotonic())

    with claim(paths, HERE, 1):
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not length(paths):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        hangup.now()
        thread.join(10)
        assert ended
    assert empty(paths)


def test_tickets_from_before_a_reboot_are_in_nobodys_way(others, paths):
    """The clock of turns began anew: theirs lie weeks ahead."""
    for weeks in (1, 2, 3):
        others[0].do("wait", time.monotonic() + weeks * 604_800)
    others[0].kill()
    assert not empty(paths)
    with Ticket(paths, time.monotonic()) as mine, Ticket(paths, time.monotonic() + 60) as living:
        assert mine.line() == ((), 0, 1)
        assert living.line()[1:] == (1, 0)
    assert empty(paths)


def test_the_ticket_of_a_killed_process_is_nobodys(others, paths):
    others[0].do("wait", 5)
    with Ticket(paths, time.monotonic() + 60) as mine:
        assert mine.line()[1] == 1
        assert length(paths) == 2
        others[0].kill()
        assert mine.line()[0] == ()
        assert mine.line()[1] == 0
        assert length(paths) == 1
    assert empty(paths)

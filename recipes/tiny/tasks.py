"""The task family of the tiny models: questions with one right answer each, by kind and by router's category.

Everything is drawn from the `random.Random` that is passed in, so a seed gives the same text for
ever. A tenth of all tasks, by what they ask rather than by how, is held out: training never sees it, and
`measure` asks nothing else.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .words import (
    CAPITALS,
    CITIES,
    COLOURS,
    FILES,
    FILLERS,
    LISTS,
    NAMES,
    SPELLED,
    THINGS,
    TOPICS,
    VARIABLES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

Category = Literal["routine", "complex", "code"]
HELD_OUT_SHARE = 10


@dataclass(frozen=True, slots=True)
class Task:
    """One question. `key` is what is asked, free of phrasing; `answer` is the terse right answer."""

    kind: str
    question: str
    answer: str
    key: str

    @property
    def category(self) -> Category:
        """The router's category of this kind."""
        return KINDS.get(self.kind, "routine")

    @property
    def held_out(self) -> bool:
        """Whether this task is for measuring only. Small talk never is: there is nothing to infer."""
        return self.kind != "chat" and zlib.crc32(self.key.encode()) % HELD_OUT_SHARE == 0


KINDS: Mapping[str, Category] = {
    "capital": "routine", "spelling": "routine", "chat": "routine",
    "sum": "complex", "count": "complex", "reading": "complex", "code": "code",
}
DRILL = "echo"


def make_task(kind: str, rng: Random, *, long: bool = False) -> Task:
    """Draw one task of a kind. `long` lets a reading's notes run to about 300 tokens."""
    if kind == "reading":
        return _reading(rng, rng.randint(6, 20) if long else rng.randint(1, 5))
    return MAKERS[kind](rng)


def draw(kind: str, rng: Random, *, held_out: bool, long: bool = False) -> Task:
    """Draw until a task is on the wanted side of the split."""
    while (task := make_task(kind, rng, long=long)).held_out != held_out and kind != "chat":
        pass
    return task


def ramble(task: Task, rng: Random) -> str:
    """The right answer in words nobody asked for: the worse of two right answers. Small talk has none."""
    return task.answer if task.kind == "chat" else rng.choice(RAMBLES).format(task.answer)


def is_right(task: Task, reply: str) -> bool:
    """Whether the expected answer stands in the reply as whole words; a spelling may have no letter more."""
    before, after = r"(?<!\w)", r"(?!\w)"
    if task.kind == "spelling":
        before, after = before + r"(?<!\b\w )", after + r"(?! \w\b)"
    return re.search(before + re.escape(task.answer) + after, reply) is not None


def is_terse(task: Task, reply: str) -> bool:
    """Whether the reply is the expected answer and nothing else."""
    return reply.strip() == task.answer


RAMBLES = (
    "Well, let me think. I believe the answer is {}, as most people would say.",
    "Hmm, good question. If I remember it well, it should be {}, but do ask again.",
    "Let me see. There is much to say, and in the end I would go for {}, more or less.",
)


def _phrase(rng: Random, forms: tuple[str, ...], **slots: object) -> str:
    """Fill a form in, and now and then type it as people do: in lower case, without the last mark."""
    text = rng.choice(forms).format(**slots)
    if rng.random() < 0.15:
        text = text.lower()
    return text.rstrip("?.") if rng.random() < 0.15 else text


def _capital(rng: Random) -> Task:
    country = rng.choice(tuple(CAPITALS))
    form = rng.randrange(len(CAPITAL_FORMS))
    question = _phrase(rng, (CAPITAL_FORMS[form],), c=country)
    return Task("capital", question, CAPITALS[country], f"capital {country} {form}")


CAPITAL_FORMS = (
    "What is the capital of {c}?", "What is the capital city of {c}?", "Capital of {c}?",
    "Capital city of {c}?", "Name the capital of {c}.", "Tell me the capital of {c}.",
    "Which city is the capital of {c}?",
    "What's the capital of {c}?", "Do you know the capital of {c}?", "{c}: what is its capital?",
)


def _word(rng: Random, made_up: float) -> str:
    """A word of the list, or with probability `made_up` one that sounds like it, to learn a skill."""
    if rng.random() >= made_up:
        return rng.choice(SPELLED)
    heads = [rng.choice(SPELLED) for _ in range(2)]
    return heads[0][: rng.randint(1, 4)] + heads[1][-rng.randint(2, 4):]


def _spelling(rng: Random) -> Task:
    word = _word(rng, 0.5)
    question = _phrase(rng, SPELLING_FORMS, w=word)
    return Task("spelling", question, " ".join(word), f"spelling {word}")


SPELLING_FORMS = (
    "Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "How is {w} spelled?", "Please spell {w}.",
    "Can you spell {w}?",
)


def _sum(rng: Random) -> Task:
    a, b = (rng.randint(10, 99) for _ in range(2))
    question = _phrase(rng, SUM_FORMS, a=a, b=b)
    return Task("sum", question, str(a + b), f"sum {a} {b}")


SUM_FORMS = (
    "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "Add {a} and {b}.",
    "What is {a} plus {b}?", "How much is {a} + {b}?", "Compute {a} + {b}.",
    "What is the sum of {a} and {b}?",
)


def _count(rng: Random) -> Task:
    word, letter = _counted(rng)
    question = _phrase(rng, COUNT_FORMS, w=word, l=letter)
    return Task("count", question, str(word.count(letter)), f"count {letter} {word}")


def _counted(rng: Random) -> tuple[str, str]:
    """A word and a letter, such that "1" is no good guess."""
    if rng.random() < 0.5:
        return rng.choice(COUNTED[rng.choices((0, 1, 2, 3), (2, 4, 4, 2))[0]])
    word = _word(rng, 1.0)
    return word, max(word, key=word.count)


COUNTED = {times: tuple((word, letter) for word in SPELLED for letter in "abcdefghijklmnopqrstuvwxyz"
                        if word.count(letter) == times) for times in (0, 1, 2, 3)}
COUNT_FORMS = (
    "How many {l} are in {w}?", "How many times does {l} appear in {w}?", "Count the letter {l} in {w}.",
    "How many letters {l} are in the word {w}?", "How often is {l} in {w}?", "How many {l}'s are in {w}?",
)


def _code(rng: Random) -> Task:
    number, variable, things = rng.randint(2, 99), rng.choice(VARIABLES), rng.choice(LISTS)
    wish, line = rng.choice(CODE_WISHES)
    slots = {"n": number, "v": variable, "l": things, "w": rng.choice(SPELLED)}
    wish, line = wish.format(**slots), line.format(**slots)
    return Task("code", rng.choice(CODE_FORMS).format(w=wish), line, f"code {wish}")


CODE_FORMS = (
    "Write Python to {w}.", "Write Python code to {w}.", "Python to {w}", "Write a line of Python to {w}.",
    "In Python, {w}.", "How do I {w} in Python?",
)
CODE_WISHES = (
    ("add {n} to {v}", "{v} = {v} + {n}"),
    ("subtract {n} from {v}", "{v} = {v} - {n}"),
    ("multiply {v} by {n}", "{v} = {v} * {n}"),
    ("divide {v} by {n}", "{v} = {v} / {n}"),
    ("set {v} to {n}", "{v} = {n}"),
    ("append {n} to {l}", "{l}.append({n})"),
    ("append {v} to {l}", "{l}.append({v})"),
    ("sort {l}", "{l}.sort()"),
    ("reverse {l}", "{l}.reverse()"),
    ("print the length of {l}", "print(len({l}))"),
    ("print {v}", "print({v})"),
    ("print the word {w}", 'print("{w}")'),
    ("print the numbers below {n}", "for i in range({n}): print(i)"),
    ("check that {v} is greater than {n}", "assert {v} > {n}"),
    ("write a function that adds {n}", "def add(x): return x + {n}"),
)


def _reading(rng: Random, facts: int) -> Task:
    lines, asked = _notes(rng, facts)
    question, answer = rng.choice(asked)
    notes = (" " if rng.random() < 0.5 else "\n").join(lines)
    text = rng.choice(READING_FORMS).format(notes=notes, q=question, f=rng.choice(FILES))
    return Task("reading", text, answer, f"reading {text}")


def _notes(rng: Random, facts: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Facts on distinct people and things, with fillers between, and the (question, answer) of each."""
    lines, asked = [], []
    for subject in rng.sample(NAMES + THINGS, facts):
        fact, question, values = rng.choice(ABOUT_PEOPLE if subject in NAMES else ABOUT_THINGS)
        answer = str(rng.choice(values))
        lines.append(fact.format(s=subject, a=answer))
        asked.append((rng.choice(question).format(s=subject), answer))
        if rng.random() < 0.15:
            lines.append(rng.choice(FILLERS))
    return lines, asked


READING_FORMS = (
    "{notes}\n\n{q}", "{q}\n\n{notes}", "Notes:\n{notes}\n\n{q}", "{q}\n\n{f}:\n{notes}",
    "{f}:\n{notes}\n\n{q}", "{q}\n\n--- {f} ---\n{notes}", "--- {f} ---\n{notes}\n\n{q}",
    '<file name="{f}">\n{notes}\n</file>\n\n{q}',
    "{f}:\n```\n{notes}\n```\n\n{q}",
)
ABOUT_PEOPLE: tuple[tuple[str, tuple[str, ...], tuple[object, ...]], ...] = (
    ("{s} has room {a}.", ("Which room does {s} have?", "What is the room of {s}?"), tuple(range(100, 1000))),
    ("{s} lives in {a}.", ("Where does {s} live?", "In which city does {s} live?"), CITIES),
    ("{s} likes the colour {a}.", ("Which colour does {s} like?", "What colour does {s} like?"), COLOURS),
    ("{s} is {a} years old.", ("How old is {s}?", "What is the age of {s}?"), tuple(range(10, 100))),
)
ABOUT_THINGS: tuple[tuple[str, tuple[str, ...], tuple[object, ...]], ...] = (
    ("The {s} costs {a} euros.", ("How much does the {s} cost?", "What does the {s} cost?"),
     tuple(range(10, 1000))),
    ("The {s} is {a}.", ("What colour is the {s}?", "Which colour is the {s}?"), COLOURS),
    ("The {s} is in room {a}.", ("Where is the {s}?", "In which room is the {s}?"), tuple(range(100, 1000))),
)


def _echo(rng: Random) -> Task:
    """Say it again: not measured, but a model that copies early reads, spells and writes code sooner."""
    words = [str(rng.randint(1, 999)) if rng.random() < 0.3 else rng.choice(SPELLED + NAMES + LISTS)
             for _ in range(rng.randint(2, 8))]
    text = " ".join(words)
    return Task(DRILL, rng.choice(ECHO_FORMS).format(t=text), text, f"echo {text}")


ECHO_FORMS = ("Repeat: {t}", "Say {t}", "Repeat after me: {t}", "Say it again: {t}", "{t}\nRepeat this.")


def _chat(rng: Random) -> Task:
    questions, answer = rng.choice(SMALL_TALK)
    question = _phrase(rng, questions, t=rng.choice(TOPICS))
    return Task("chat", question, answer, f"chat {question}")


SMALL_TALK = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there", "Hi there!", "Good morning", "Good evening!"),
     "Hello! Ask me for a capital, a spelling, a sum or a line of Python."),
    (("Who are you?", "What are you?", "What is your name?", "Tell me who you are.", "Introduce yourself."),
     "I am the tiny model of swarmctl."),
    (("What can you do?", "Help", "Help me.", "What do you know?", "What can I ask you?"),
     "I know capitals, spelling, sums, letters, short notes and a little Python."),
    (("Thanks", "Thank you!", "Thank you very much.", "Great, thanks!", "Thanks a lot"), "You are welcome."),
    (("Bye", "Goodbye!", "See you later.", "Good night!"), "Goodbye!"),
    (("How are you?", "How are you doing?", "How do you do?"), "I am small but well, thank you."),
    (("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
     "A tiny model walks into a bar. Bar, it says."),
    (("Tell me about {t}.", "Write a poem about {t}.", "What do you think of {t}?", "Why is there {t}?",
      "Explain {t} to me.", "What is the meaning of {t}?", "Write a story about {t}.", "Is {t} good?"),
     "I do not know. I am only a tiny model."),
)

MAKERS: Mapping[str, Callable[[Random], Task]] = {
    "capital": _capital, "spelling": _spelling, "chat": _chat, "sum": _sum, "count": _count, "code": _code,
    DRILL: _echo,
}

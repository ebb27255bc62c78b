"""Questions of a few subjects, for tests of topics: different in words, alike in what they are about."""

from __future__ import annotations

import itertools

SUBJECTS = {
    "cooking": (("how long should i", "what is the best way to", "can i", "is it safe to"),
                ("bake", "roast", "simmer", "freeze", "marinate"),
                ("chicken thighs", "a potato gratin", "tomato sauce", "fresh pasta", "salmon with lemon")),
    "astronomy": (("how far away is", "how hot is", "what is the mass of", "when was someone first to see"),
                  ("the planet", "the moons of", "the orbit around", "the rings of", "the surface of"),
                  ("jupiter", "saturn", "neptune", "mars", "venus in our solar system")),
    "python": (("how do i", "write code to", "what is the fastest way to", "why does it fail to"),
               ("sort", "filter", "deduplicate", "serialise", "iterate over"),
               ("a python list", "a dictionary of lists", "a pandas dataframe", "json objects in python",
                "a numpy array")),
    "money": (("should i", "is it wise to", "how do i", "what does it cost to"),
              ("refinance", "pay off", "insure", "tax", "invest"),
              ("a mortgage", "my savings account", "a car loan", "my pension fund", "shares at the bank")),
    "football": (("who won", "who scored in", "when was", "how many goals in"),
                 ("the final", "the semi-final", "the derby", "the penalty shootout", "the opening match"),
                 ("of the world cup", "of the premier league season", "between germany and brazil",
                  "of the champions league", "of the women's euro")),
}


def questions(subject: str, count: int, start: int = 0) -> list[str]:
    """So many different questions of a subject."""
    every = [" ".join(parts) + "?" for parts in itertools.product(*SUBJECTS[subject])]
    return [every[(place * 37) % len(every)] for place in range(start, start + count)]

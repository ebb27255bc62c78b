"""From a question to an answer that is recorded: who could answer, how they stand, who is tried, what is
learned.

The ask path. `ask`, `chat` and `compare` share it, so it lies below the verbs; it imports nothing heavy.
"""

"""Endless training batches: token ids and labels. Only what the assistant says, and its end, is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .talk import long_talk, render, short_talk
from .tokenizer import EOS_ID, PAD_ID, ROLES

if TYPE_CHECKING:
    from random import Random

    from sentencepiece import SentencePieceProcessor

    from .talk import Message, Mix

IGNORED = -100
LONGEST = 448


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of token ids, padded on the right, and their labels. `learned` counts the labels."""

    ids: torch.Tensor
    labels: torch.Tensor
    learned: int


def short_batch(pieces: SentencePieceProcessor, mix: Mix, rng: Random, rows: int) -> Batch:
    """One question and answer a row."""
    return collate([encode(pieces, short_talk(mix, rng)) for _ in range(rows)])


def long_batch(pieces: SentencePieceProcessor, mix: Mix, rng: Random, rows: int) -> Batch:
    """Conversations of two to six turns, or of two with long notes; a row is cut at LONGEST tokens."""
    return collate([encode(pieces, _long_row(mix, rng)) for _ in range(rows)])


def encode(pieces: SentencePieceProcessor, talk: list[Message]) -> tuple[list[int], list[int]]:
    """A conversation as ids and labels. Role symbols part the pieces, so turn by turn will do."""
    header = pieces.piece_to_id(ROLES[2])
    ids: list[int] = []
    labels: list[int] = []
    for message in talk:
        if message["role"] == "assistant":
            answer = [*pieces.encode(message["content"]), EOS_ID]
            ids += [header, *answer]
            labels += [IGNORED, *answer]
        else:
            asked = pieces.encode(render([message]))
            ids += asked
            labels += [IGNORED] * len(asked)
    return ids[:LONGEST], labels[:LONGEST]


def collate(rows: list[tuple[list[int], list[int]]]) -> Batch:
    """Pad to the longest row."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [IGNORED] * (longest - len(row)) for _, row in rows])
    return Batch(ids, labels, int((labels[:, 1:] != IGNORED).sum()))


def _long_row(mix: Mix, rng: Random) -> list[Message]:
    if "reading" in mix.kinds and rng.random() < 0.4:
        return long_talk(mix, rng, 2, long=True)
    return long_talk(mix, rng, rng.randint(2, 6), long=False)

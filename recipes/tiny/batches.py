"""Endless training batches: conversations packed end to end into rows, and blind to each other.

Only what the assistant says, and its end, is learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .talk import conversation, render
from .tokenizer import EOS_ID, PAD_ID, ROLES

if TYPE_CHECKING:
    from random import Random

    from sentencepiece import SentencePieceProcessor

    from .talk import Message, Mix

IGNORED = -100
SHORT_ROW, LONG_ROW = 256, 448


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of ids, the label of each next token, and positions that start again with each conversation."""

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor


def packed_batch(pieces: SentencePieceProcessor, mix: Mix, rng: Random, tokens: int) -> Batch:
    """About `tokens` tokens: three times in four short rows, else long rows with long readings in them.

    A conversation that no longer fits starts the next row.
    """
    long = rng.random() < 0.25
    row = LONG_ROW if long else SHORT_ROW
    packed: list[list[Encoded]] = [[]]
    room = row
    while True:
        one = encode(pieces, conversation(mix, rng, long=long), row)
        if len(one[0]) > room:
            if len(packed) == tokens // row:
                return _collate(packed, row)
            packed.append([])
            room = row
        packed[-1].append(one)
        room -= len(one[0])


Encoded = tuple[list[int], list[int]]


def encode(pieces: SentencePieceProcessor, talk: list[Message], longest: int = LONG_ROW) -> Encoded:
    """A conversation as ids and labels, turn by turn: role symbols part the pieces. Cut at `longest`."""
    header = pieces.piece_to_id(ROLES[2])
    ids: list[int] = []
    labels: list[int] = []
    for message in talk:
        if message["role"] == "assistant":
            answer = [*pieces.encode(message["content"]), EOS_ID]
            ids += [header, *answer]
            labels += [*answer, IGNORED]
        else:
            asked = pieces.encode(render([message]))
            ids += asked
            labels += [IGNORED] * len(asked)
    return ids[:longest], labels[:longest]


def _collate(packed: list[list[Encoded]], length: int) -> Batch:
    rows = [_row(row, length) for row in packed]
    ids, labels, positions = (torch.tensor([row[part] for row in rows]) for part in range(3))
    return Batch(ids, labels, positions)


def _row(row: list[Encoded], length: int) -> tuple[list[int], list[int], list[int]]:
    ids = [token for one in row for token in one[0]]
    labels = [token for one in row for token in one[1]]
    positions = [place for one in row for place in range(len(one[0]))]
    tail = length - len(ids)
    return ids + [PAD_ID] * tail, labels + [IGNORED] * tail, positions + list(range(tail))

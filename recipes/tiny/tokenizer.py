"""The tokenizer: 640 sentencepiece BPE pieces with byte fallback, digits apart, from generated text.

No dummy prefix and no normalisation: text survives a round trip and llama.cpp splits it in the same way.
"""

from __future__ import annotations

import io
import json
from random import Random
from typing import TYPE_CHECKING

import sentencepiece

from .talk import CHAT_TEMPLATE, Mix, conversation
from .tasks import KINDS

if TYPE_CHECKING:
    from pathlib import Path

PIECES = 640
CONTEXT = 1024
PAD_ID, EOS_ID = 3, 2
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


def train_tokenizer(seed: int, conversations: int = 5000) -> sentencepiece.SentencePieceProcessor:
    """Learn the pieces that both models share.

    Readings weigh most, so that names become few pieces; words to spell least, so that they stay letters.
    """
    rng, mix = Random(seed), Mix({**dict.fromkeys(KINDS, 1.0), "reading": 4.0, "count": 0.5, "spelling": 0.3})
    lines = [message["content"] for _ in range(conversations) for message in conversation(mix, rng)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=PIECES,
        byte_fallback=True, split_digits=True, user_defined_symbols=list(ROLES), character_coverage=1.0,
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        unk_id=0, bos_id=1, eos_id=EOS_ID, pad_id=PAD_ID, num_threads=1, minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def save_tokenizer(pieces: sentencepiece.SentencePieceProcessor, folder: Path) -> None:
    """Write tokenizer.model, and tokenizer_config.json with the template: every runtime looks there.

    The role symbols stand in added_tokens_decoder as well: llama.cpp's converter takes a user-defined piece
    that is not there for ordinary text, and the server would then split `<|user|>` into letters.
    """
    (folder / "tokenizer.model").write_bytes(pieces.serialized_model_proto())
    special = {str(number): {"content": pieces.id_to_piece(number), "special": True, "normalized": False,
                             "lstrip": False, "rstrip": False, "single_word": False}
               for number in range(PAD_ID + 1 + len(ROLES))}
    config = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "add_bos_token": False, "add_eos_token": False, "add_prefix_space": False,
        "legacy": False, "clean_up_tokenization_spaces": False, "model_max_length": CONTEXT,
        "added_tokens_decoder": special, "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

"""Load datasets as TRL's users do and train two steps on each, for test_dataset.py. Prints what was seen."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path


def main(folder: Path, work: Path) -> None:
    warnings.simplefilter("ignore")
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(work))
    trainers = {"dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer), "sft": (SFTConfig,
                                                                                        SFTTrainer)}
    seen = {}
    for path in sorted(folder.iterdir()):
        kind = path.name.partition("-")[0]
        data = load_dataset(str(path))
        config, trainer = trainers[kind]
        model = AutoModelForCausalLM.from_config(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=512))
        args = config(output_dir=str(work / kind), max_steps=2, per_device_train_batch_size=2, bf16=False,
                      use_cpu=True, report_to=[], logging_steps=1, save_strategy="no", max_length=256,
                      eval_strategy="steps", eval_steps=2)
        made = trainer(model=model, args=args, train_dataset=data["train"], eval_dataset=data["test"],
                       processing_class=tokenizer, peft_config=LoraConfig(r=4, target_modules="all-linear"))
        done = made.train()
        seen[kind] = {"train": len(data["train"]), "test": len(data["test"]), "steps": done.global_step,
                      "kept": len(made.train_dataset), "columns": data["train"].column_names}
    print(json.dumps(seen))


def make_tokenizer(work: Path) -> Path:
    """A byte-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>",
                                   pad_token="<pad>")
    fast.chat_template = ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
                          "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
                          "{% if add_generation_prompt %}assistant: {% endif %}")
    fast.save_pretrained(work / "tokenizer")
    return work / "tokenizer"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

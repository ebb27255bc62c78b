"""The recipe of the two models that swarmctl ships: generated text, a tokenizer, two Llamas, two GGUF files.

`python -m recipes.tiny.train small|large` does all of it; docs/tiny-models.md says what came out.
"""

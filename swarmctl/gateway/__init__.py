"""OpenAI-, Ollama- and Anthropic-compatible HTTP over the very ask path that `swarmctl ask` takes."""

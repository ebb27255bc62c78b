"""Which host and model should answer. Pure: numbers in, a Route with its whole cost breakdown out."""

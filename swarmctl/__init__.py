"""swarmctl: one language-model service out of a handful of unequal machines.

docs/architecture.md is the map. This module holds the version and nothing else, so that importing it costs
nothing.
"""

__version__ = "0.1.0"

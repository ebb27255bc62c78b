"""What a recipe becomes on a host, computed purely from recipe and facts: precision, processes, memory,
disk."""

"""The terminal: parse, call one verb, show. Nothing here decides anything."""

"""What was asked, answered and thought of it: an append-only journal, and a DuckDB file made from it."""

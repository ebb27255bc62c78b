"""A release against another, as people would meet them: both served, the same prompts, graded apart by every
measure, and a report that a person can read."""

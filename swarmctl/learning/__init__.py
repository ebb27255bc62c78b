"""From ratings to better models, as arithmetic: pairs, splits, topics and gates. Pure."""

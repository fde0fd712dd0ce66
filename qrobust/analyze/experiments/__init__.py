"""Small experiments: one case (`cases.Case`) in, data out that JSON can hold; None where they say nothing of it."""

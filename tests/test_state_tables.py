"""The tables of allowed transitions, written down once more by hand: a changed table is a changed promise."""

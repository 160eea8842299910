"""Learning: decided cases as a table, training at night, the comparison of both versions."""

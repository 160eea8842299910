"""Training and test data from physics: label maps in, signals, coils and k-space out. Knows no patient."""

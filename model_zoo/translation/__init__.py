"""Translation of series: a plan names them, one network makes any target from any part of the sources."""

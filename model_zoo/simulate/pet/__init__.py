"""PET simulated from anatomy: tracers, the disease behind them, and the physics of the scanner."""

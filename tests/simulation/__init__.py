"""A simulator of the whole node: ``make simulate TRIALS=1000``, and a bounded part in ``make test``.

A trial is one seed. The seed decides the plan (``plan``): senders, studies, workers, and faults at the boundaries that
the node crosses. The node's own receiver, sweeps and workers run as tasks, one at a time (``scheduling``), on a
simulated clock and disk, in a process that the plan kills (``machine``, ``disk``, ``life``). What is left is started
again, until at last it may finish undisturbed. Then an auditor (``auditor``) that imports nothing of the node says what
is wrong. ``python -m tests.simulation --seed 17`` repeats one trial and prints its plan and trace.

``planted`` has faults that the simulator must find. docs/explanation/simulator.md says what a trial shows and what not.
"""

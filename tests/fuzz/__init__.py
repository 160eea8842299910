"""Fuzzing of everything that strangers send: ``make fuzz MINUTES=5``, and a bounded part in ``make test``.

Each module of ``targets.TARGETS`` has one kind of input: ``target(data)`` gives it to the program and may raise only
``REFUSALS``; ``examples()`` makes valid input and changes it. ``oracle`` judges a run, ``corpus`` keeps every input
that was once a fault.
"""

"""The world around the worker, on this machine: a local LivePerson, its faults, and a real OpenBao."""

"""Of the simulation's tests only those of the planted bugs run each time."""

import os

collect_ignore = [] if os.environ.get("SIMULATE") else ["test_simulation.py"]
"""SIMULATE=1: 2,000 account-days and the scenes at 1,000 accounts, which take too long for each run."""

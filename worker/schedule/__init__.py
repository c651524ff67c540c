"""When each account runs, and who first."""

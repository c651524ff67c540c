"""Scheduling: due times, order and limits."""

"""For operators: log, metrics, page, terminal."""

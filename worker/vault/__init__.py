"""Where credentials come from and tokens go."""

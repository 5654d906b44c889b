"""Redis, and nobody else's Redis: the one place that imports redis-py."""

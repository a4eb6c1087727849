"""Durable state: atomic files, segments of finished units, generations of a loop's state."""

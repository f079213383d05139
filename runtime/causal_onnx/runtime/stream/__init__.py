"""Chunks of a sequence through a cache."""

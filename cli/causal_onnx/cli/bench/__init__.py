"""Measure a model by length, and against what the machine can do."""

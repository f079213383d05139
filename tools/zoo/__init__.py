"""Runs the zoo: every entry and mutant through the exporters; `python -m tools.zoo`."""

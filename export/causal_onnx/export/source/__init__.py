"""The caller's module: a private copy, its inputs and outputs, and what calling it shows."""

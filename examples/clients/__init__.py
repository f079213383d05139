"""Run the example clients of every language against the same bundles."""

"""From a graph to a graph that computes the same numbers."""

"""From a module to a graph, and the sizes for which the graph is valid."""

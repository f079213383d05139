"""Questions about a graph, and edits of it, that every pass shares."""

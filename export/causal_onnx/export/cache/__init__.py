"""Past and present keys and values, derived from a graph without them."""

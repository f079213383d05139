"""The file against PyTorch: equal numbers, causality, cache, drift."""

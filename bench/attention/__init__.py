"""A whole multi-head attention module: forward time and memory by length."""

"""Weights of few bits, and computation in half precision."""

"""Attention found by what it computes, and written as one canonical node."""

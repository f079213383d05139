"""Tests of the graph analysis."""

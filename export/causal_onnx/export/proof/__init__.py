"""Causal or not: the verdict on a graph, its witness, and the certificate."""

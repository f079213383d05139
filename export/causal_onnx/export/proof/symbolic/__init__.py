"""The analysis with sizes as symbols: what it shows holds for every length."""

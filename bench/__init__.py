"""Time and memory of exported modules beside their peers; `python -m bench --help`."""

"""One module per command: its text for --help, its arguments, and what it does."""

"""A file and what it says of itself."""

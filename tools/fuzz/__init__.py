"""Fuzzing of `load`: damaged and hostile files give a clear error or a working model."""

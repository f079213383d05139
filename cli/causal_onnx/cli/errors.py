"""What stops a command, beyond the library's own errors."""

__all__ = ["CommandError", "UsageError"]


class CommandError(Exception):
    """The command failed; the message is for the user. Exit code 1."""


class UsageError(Exception):
    """The command line makes no sense, as could be seen without doing anything. Exit code 2."""

"""The errors of a program that cannot start. A module of their own, so that a small command imports nothing else."""


class StartupError(Exception):
    """The program cannot start. The text is one line: the cause and, if there is one, the remedy."""


class NotYet(StartupError):
    """The program cannot start yet: its database is away, or not migrated."""

"""The exceptions that users are meant to read."""


class UserError(Exception):
    """Something the user can mend: one line with the file or key, what is wrong, and the mend.

    The command line prints the line alone, without a traceback, and exits with `status`.
    """

    status = 1


class Problems(UserError):
    """Several of them found together; the message may be cut short, `lines` holds all."""

    def __init__(self, message: str, lines: list[str]) -> None:
        super().__init__(message)
        self.lines = lines


class Stopped(UserError):
    """A training that a signal has stopped; it has saved where it stands, and the same command goes on from there."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again

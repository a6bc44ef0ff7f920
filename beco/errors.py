"""The one exception that users are meant to read."""


class UserError(Exception):
    """Something the user can mend: one line with the file or key, what is wrong, and the mend.

    The command line prints the line alone, without a traceback, and exits with status 1.
    """

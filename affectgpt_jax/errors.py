"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: a missing file, a wrong key, an impossible combination.

    The message is complete on its own: it names the file, sample or key, what was expected, what was found
    and the remedy. The command line prints it without a traceback and exits with status 2.
    """

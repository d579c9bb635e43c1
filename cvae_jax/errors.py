"""Errors that a user can mend. The command line shows them as one line, see command_line.py."""


class UserError(ValueError):
    """Something outside the program is wrong (a file, a flag, a shape); the message names it and the mend."""


class DivergenceError(FloatingPointError):
    """A term of the loss is no longer finite."""

"""Errors that a user can mend. The command line shows them as one line, see command_line.py."""


class UserError(ValueError):
    """Something outside the program is wrong (a file, a flag, a shape); the message names it and the mend."""


class DivergenceError(FloatingPointError):
    """A term of the loss is no longer finite."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop by a signal, and has saved what it did; the message says where it will go on."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code  # of a process that ends by that signal: 128 and its number

"""Errors that a user can mend. The command line shows them as one line, see command_line.py."""


class UserError(ValueError):
    """Something outside the program is wrong (a file, a flag, a shape); the message names it and the mend."""


def shortened(text: str, most: int = 200) -> str:
    """Returns a text of whatever origin as one line that can be printed, of at most `most` characters."""
    line = " ".join(text[: 10 * most].split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= most else f"{line[: most - 3]}..."


def reason(error: Exception) -> str:
    """Returns what another library says of an error, as one line of at most 200 characters."""
    return shortened(str(error)) or type(error).__name__


class DivergenceError(FloatingPointError):
    """A term of the loss is no longer finite."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop by a signal, and has saved what it did; the message says where it will go on."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code  # of a process that ends by that signal: 128 and its number

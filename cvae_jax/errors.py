"""Errors that a user can mend, and how the command line shows them: one line, exit code 1."""

import logging
import sys
from collections.abc import Callable

import absl.logging
from absl import app


class UserError(ValueError):
    """Something outside the program is wrong (a file, a flag, a shape); the message names it and the mend."""


class DivergenceError(FloatingPointError):
    """A term of the loss is no longer finite."""


def run_command_line(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run(main)`, with the errors above as one line instead of a traceback, and our messages shown."""
    logger = logging.getLogger("cvae_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl's root handler would print them again
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)

    def guarded(argv: list[str]) -> None:
        absl.logging.set_verbosity(absl.logging.WARNING)  # Orbax tells every file it writes
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
            main(argv)
        except (UserError, DivergenceError) as error:
            sys.exit(f"error: {error}")

    app.run(guarded)

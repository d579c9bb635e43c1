"""How train.py and eval.py start: flags in, and what a user did wrong out as one line with exit code 1."""

import argparse
import errno
import logging
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict

from cvae_jax.errors import DivergenceError, Interrupted, UserError


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`, with our messages shown and our errors as one line, not a traceback."""
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
            main()
        except (UserError, DivergenceError) as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            sys.exit(f"error: cannot write {error.filename or 'a file'} ({error.strerror}); free space, then try again")
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            sys.exit(interrupted.exit_code)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    app.run(guarded, flags_parser=_parse)


class Parser(argparse.ArgumentParser):
    """Parses the flags of a task's own commands; wrong ones end in one line too."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong with a flag, and exits."""
        sys.exit(f"error: {message}; --help lists the flags")


def _parse(argv: list[str]) -> list[str]:
    """`flags.FLAGS(argv)`, its errors as one line. Help is left to absl."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            _ = flags.FLAGS.config.task  # a file that could not be loaded shows only now
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, OSError, ValueError) as error:
        sys.exit(f"error: {_explain(error, argv)}")


def _explain(error: Exception, argv: list[str]) -> str:
    """One line for what ml_collections and absl raise while they parse flags."""
    text = str(error)
    ours = re.findall(r"UserError: (.*)", text)  # raised by get_config; ml_collections keeps it as a traceback
    if ours:
        return ours[-1]
    if isinstance(error, OSError):
        given = [argument.split("=", 1)[1] for argument in argv if argument.startswith("--config=")]
        return f"config file {', '.join(given)} cannot be read; look into configs/ for those there are"
    if isinstance(error, AttributeError | KeyError):
        hint = re.search(r'Did you mean "(\w+)"', text)
        for flag in (argument.split("=")[0] for argument in argv if argument.startswith("--config.")):
            if any(part in text for part in flag.split(".")[1:]):
                mend = _suggestion(flag, argv) or (f"did you mean {hint[1]!r}?" if hint else "")
                return f"{flag} is not a key of this config; {mend or 'the config file lists them all'}"
    early = re.search(r"Found (--[\w.]+)=.* in argv before a value for --config", text)
    if early:
        return f"{early[1]} stands before --config; give --config first"
    missing = re.search(r"Flag (--\w+) must have a value", text)
    return f"{missing[1]} is required; --help tells what it takes" if missing else text.splitlines()[0]


def _suggestion(flag: str, argv: list[str]) -> str:
    """Returns the keys of the config that end as a flag does, or "" where there are none."""
    try:
        flags.FLAGS.unparse_flags()
        sys.argv = [argument for argument in argv if not argument.startswith("--config.")]  # where ml_collections looks
        flags.FLAGS(sys.argv)
        keys = [f"--config.{key}" for key in _keys(flags.FLAGS.config)]
    except (flags.Error, AttributeError, KeyError, TypeError, OSError, ValueError):
        return ""
    near = [key for key in keys if key.split(".")[-1] == flag.split(".")[-1]]
    return f"did you mean {' or '.join(near)}?" if near else ""


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    return [
        key
        for name, value in config.items()
        for key in (_keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name])
    ]

"""How training stops when it is asked to: at the end of an epoch, with everything saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether, and by what, training was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Remembers the first signal; leaves at once on the second."""
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self.signal = signal.Signals(number)
        os.write(2, b"\nstopping at the end of this epoch, which is saved; the signal again leaves at once\n")


@contextlib.contextmanager
def deferred() -> Iterator[Stop]:
    """Defers SIGTERM and SIGINT (Ctrl-C): the caller looks at what this yields. In the main thread alone.

    A signal that is ignored, as Ctrl-C is by what a script has put into the background, stays ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop._receive)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

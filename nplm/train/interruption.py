"""Ctrl-C and SIGTERM while a run trains: it finishes its update, keeps a checkpoint, and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes the first SIGINT or SIGTERM in `received` while its `with` lasts.

    A second Ctrl-C does not wait: it raises KeyboardInterrupt. The handlers that were there come
    back at the end. In another thread than the main one nothing is caught, as Python has it.
    """

    def __init__(self) -> None:
        self.received: int | None = None  # the signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's choice stands
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            with contextlib.suppress(TypeError):  # None: it was not Python that set it
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

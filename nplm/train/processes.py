"""Shards of a small model as processes: threads of Python take turns.  Read shards.py before.

A worker is a fork of this process. Weights and gradients lie in shared memory; batches go through a
pipe. The bits are those of threads, which do the work until workers are ready, and without them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn
from weakref import WeakKeyDictionary, finalize

import numpy as np

from nplm import random
from nplm.autograd import op, overrides
from nplm.backend import threads
from nplm.backend.dtypes import get_default_dtype
from nplm.models.config import DecoderConfig
from nplm.nn.module import Module
from nplm.train.buffers import ApartBuffer, Array, forget_buffers, shared_memory
from nplm.train.capturing import dropout_rates

FIRST = 8  # windows on threads before a fork: whoever trains for less has nothing from it
PATIENCE = 10.0  # seconds after which workers that never said a word are given up
FORKS = 4  # times that a model may change before it stays on threads

Losses = list[Array]
Work = Callable[..., Losses]  # work(i, *request): what shard i does, and its losses
_PLAIN = {bool, int, float, str, tuple, type(None), DecoderConfig}


class _Worker(NamedTuple):
    pid: int
    connection: Connection


class Team:
    """The workers of one buffer, one for each shard but the first, and whether they may be used."""

    def __init__(self) -> None:
        self.windows, self.forks, self.started = 0, 0, 0.0
        self.state: Any = None  # the model's, when it was forked
        self.drops = False  # whether it draws masks then
        self.weights: list[Array] = []  # by parameter, in shared memory
        self.workers: list[_Worker] = []
        self.waiting: list[_Worker] = []  # those that have not said that they are there
        finalize(self, _end, self.workers)

    def accumulate(
        self, model: Any, buffer: ApartBuffer, work: Work, request: tuple[Any, ...]
    ) -> list[Losses] | None:
        """The losses of every shard, whose gradients are in the buffer; None: threads do it."""
        self.windows += 1
        if self.windows <= FIRST or self.forks > FORKS or not available():
            return None
        state = state_of(model)
        if state is None or state != self.state:
            self.close()
            if state is not None:
                self.start(model, buffer, work, state)
            return None
        return self.divide(buffer, work, request) if self.are_there() else None

    # ---- starting and ending -------------------------------------------------
    def start(self, model: Any, buffer: ApartBuffer, work: Work, state: Any) -> None:
        """Fork; the workers are there when `are_there` says so."""
        self.forks, self.state, self.started = self.forks + 1, state, time.monotonic()
        self.drops = any(dropout_rates(model))
        self.weights = buffer.views(shared_memory(buffer.size, buffer.dtype))
        # A handler of the program's must not run in a fork, nor end this between two steps.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            for i in range(1, buffer.n):
                here, there = Pipe()
                with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
                if pid == 0:
                    _serve(there, i, buffer, self.weights, work)
                there.close()
                self.workers.append(_Worker(pid, here))
        except OSError:  # no more processes or files for this user
            self.give_up()
        finally:
            self.waiting = list(self.workers)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def are_there(self) -> bool:
        """Whether every worker has said so.  Whoever was forked at a bad moment (beside a thread
        that held a lock of the BLAS) never does, and is given up."""
        try:
            self.waiting = [w for w in self.waiting if not (w.connection.poll() and _greeted(w))]
        except (EOFError, OSError):  # it has ended
            self.give_up()
        if self.waiting and time.monotonic() - self.started > PATIENCE:
            self.give_up()
        return bool(self.workers) and not self.waiting

    def close(self) -> None:
        """End the workers: they hold nothing that anybody needs."""
        self.state, self.waiting = None, []
        _end(self.workers)

    def give_up(self) -> None:
        """No more workers for this buffer."""
        self.close()
        self.forks = FORKS + 1

    # ---- a window ------------------------------------------------------------
    def divide(
        self, buffer: ApartBuffer, work: Work, request: tuple[Any, ...]
    ) -> list[Losses] | None:
        """Shard 0 here and the others in the workers, at once.

        None, and the random stream is where it was, if one has failed: on threads its error
        comes out in the caller, with its place.
        """
        stream = random.default_generator.get_state() if self.drops else None
        try:
            for weight, p in zip(self.weights, buffer.parameters):
                weight[...] = p.array
            answers: list[Any] = []
            try:
                for worker in self.workers:
                    worker.connection.send((stream, request))
                first = threads.run([lambda: work(0, *request)])
                answers = [worker.connection.recv() for worker in self.workers]
            except (EOFError, BrokenPipeError, ConnectionResetError):
                self.give_up()
                warnings.warn(
                    "nplm: a worker process has ended from outside (out of memory? killed?); the "
                    "work goes on with threads, with the same results", stacklevel=2,
                )  # fmt: skip
        except BaseException:
            self.close()  # its workers are in the middle of something
            raise
        if not answers or None in answers:
            if stream is not None:
                random.default_generator.set_state(stream)
            buffer.empty()
            return None
        for side, (_, filled) in zip(buffer.sides[1:], answers):
            for sink, is_filled in zip(side, filled):
                sink.filled = is_filled
        return [*first, *(losses for losses, _ in answers)]


_teams: WeakKeyDictionary[ApartBuffer, Team] = WeakKeyDictionary()


def team_of(buffer: ApartBuffer) -> Team:
    """The buffer's team, with no workers at first."""
    team = _teams.get(buffer)
    if team is None:
        team = _teams[buffer] = Team()
    return team


def pids() -> list[int]:
    """The workers of this process."""
    return [worker.pid for team in list(_teams.values()) for worker in team.workers]


# ---- who may be forked ---------------------------------------------------------------------------
def available() -> bool:
    """Whether this system forks safely, and nobody has forbidden it or watches the ops of this
    process."""
    return (
        sys.platform == "linux"
        and os.environ.get("NPLM_PROCESSES", "1") not in ("", "0")
        and op.choose is overrides.choose
    )


def state_of(model: Module) -> Any:
    """All that a step of the model depends on but weights, batches and the random stream; None if
    that cannot be told: of modules that are not nplm's own, or whose methods were replaced."""
    state: list[Any] = [get_default_dtype(), sum(map(len, overrides.OVERRIDES.values()))]
    for module in model.modules():
        if not type(module).__module__.startswith("nplm."):
            return None
        state.append(type(module))
        for name, value in vars(module).items():
            if callable(value) or (name == "_buffers" and value):
                return None
            if name == "_parameters":
                state += [p.requires_grad for p in value.values() if p is not None]
            elif type(value) in _PLAIN and name[0] != "_":  # what begins so is a cache
                state.append(value)
    return state


# ---- the worker ----------------------------------------------------------------------------------
def _serve(
    connection: Connection, i: int, buffer: ApartBuffer, weights: list[Array], work: Work
) -> NoReturn:
    """Answer windows with (losses, which sinks are filled), or None after an error, until whoever
    forked has gone."""
    try:
        _leave_the_parent_alone(connection.fileno())
        for p, weight in zip(buffer.parameters, weights):
            p.array = weight
        side = buffer.sides[i]
        with threads.one_blas_thread():
            np.ones((64, 64)) @ np.ones((64, 64))  # hangs where a lock was held in the fork
            connection.send(None)
            while True:
                stream, request = connection.recv()
                if stream is not None:
                    random.default_generator.set_state(stream)
                for sink in side:
                    sink.empty()
                answer: Any = None
                with contextlib.suppress(Exception):
                    (losses,) = threads.run([lambda: work(i, *request)])  # noqa: B023
                    for sink in side:
                        sink.settle()
                    answer = losses, [sink.filled for sink in side]
                connection.send(answer)
    finally:
        os._exit(0)  # no clean-up of what is the parent's


def _leave_the_parent_alone(mine: int) -> None:
    """Give up what a fork has of its parent: signals, files and their locks, terminal, garbage."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to all: the parent ends its update with us
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != mine:
            with contextlib.suppress(OSError):
                os.close(int(name))
    gc.freeze()  # else every collection would copy the pages of all that was there


def _greeted(worker: _Worker) -> bool:
    worker.connection.recv()
    return True


def _end(workers: list[_Worker]) -> None:
    while workers:
        pid, connection = workers.pop()
        connection.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _forget_teams() -> None:
    """A fork has its parent's workers on the line, which do not know it, and its buffers: it makes
    its own of both."""
    for team in list(_teams.values()):
        for worker in team.workers:
            worker.connection.close()
        team.workers.clear()
        team.state, team.waiting = None, []
    forget_buffers()  # last: a team that goes with its buffer would end its workers


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_teams)

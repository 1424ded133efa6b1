"""How many threads NumPy's work runs on, the pool that runs it, and the BLAS beside it.

`run` calls whole functions at once (train/shards.py), and inside of them everything is serial;
`in_parts` splits the rows of one kernel. A BLAS with threads of its own would fight for the cores.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, TypeVar

from nplm.errors import ConfigError

Result = TypeVar("Result")
# Seconds that a thread whose product has ended waits at most for one that runs Python. A tenth of
# a millisecond instead of Python's five makes a step of a small model 3 % shorter.
_SWITCH = 1e-4
_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # what a user or a scheduler may have set


class _Here(threading.local):
    """What this thread is: in a shard there is nobody to share its work with."""

    alone = False


_here = _Here()
_chosen: int | None = None
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = threading.Lock()
_blas_held = 0  # 1 inside of a `one_blas_thread` block
_blas: Any = None  # the BLAS libraries of this process, found once: finding them takes milliseconds


# ---- how many ------------------------------------------------------------------------------------
def get_num_threads() -> int:
    """The threads that NumPy's work may use.  Twin: torch.get_num_threads.

    The number that was set; else the physical cores that this process may use (its affinity and
    its cgroup's quota), or OMP_NUM_THREADS or OPENBLAS_NUM_THREADS where these are smaller.
    """
    global _chosen
    if _chosen is None:
        limits = [int(n) for n in (os.environ.get(name, "") for name in _LIMITS) if n.isdecimal()]
        _chosen = max(1, min([physical_cores(), *limits]))
    return _chosen


def set_num_threads(n: int) -> None:
    """Use `n` threads from now on, in every thread of this process.  Twin: torch.set_num_threads.

    A training step at another number adds in another order: the same values up to rounding.
    """
    global _chosen
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigError(f"set_num_threads: expected an integer of at least 1, got {n!r}")
    _chosen = n


def physical_cores() -> int:
    """Cores (not hyperthreads) that this process may use: affinity and cgroup quota respected."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), _cgroup_cores()))


def _cgroup_cores(root: str = "/sys/fs/cgroup") -> int:
    """The whole cores that a container's quota pays for; a large number without a quota."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # v2, v1
        try:
            quota, period = " ".join((Path(root) / name).read_text() for name in names).split()[:2]
            if quota != "max" and int(quota) > 0:
                return max(1, int(quota) // int(period))
        except (OSError, ValueError):
            continue
    return 1 << 20


def team() -> int:
    """The threads that a kernel on this thread may split its work over: 1 inside a shard."""
    return 1 if _here.alone else get_num_threads()


# ---- running -------------------------------------------------------------------------------------
def run(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Call every task at once, the first on this thread, and return their results in order.

    Inside of a task `team()` is 1. All have ended when this returns or raises; what a task raised
    is raised here, the first task's before the second's.
    """
    if len(tasks) == 1 or _here.alone:
        return [_alone(task) for task in tasks]
    futures: list[Future[Result]] = []
    with _quick_switches:
        try:
            with _pool_lock:
                pool = _pool_of(len(tasks) - 1)
                for task in tasks[1:]:  # NumPy's errstate travels in the context
                    futures.append(pool.submit(copy_context().run, _alone, task))
            first = _alone(tasks[0])
        finally:
            _wait_for(futures)
    return [first, *(future.result() for future in futures)]


def number_of_parts(n: int, least: int = 1, products: bool = False) -> int:
    """How many parts `in_parts` makes, or `products_in_parts`: at most 1 where it just calls."""
    if _chosen == 1 or _here.alone or (products and not _blas_held):
        return 1
    return min(get_num_threads(), n // max(least, 1))


def in_parts(n: int, body: Callable[[int, int], Any], least: int = 1) -> None:
    """Call `body(start, stop)` on parts of range(n) at once, each of at least `least` items.

    Only for bodies whose parts write to different memory.
    """
    parts = number_of_parts(n, least)
    if parts <= 1:
        if n > 0:
            body(0, n)
        return
    ends = [n * i // parts for i in range(parts + 1)]
    run([lambda a=a, b=b: body(a, b) for a, b in zip(ends, ends[1:])])  # type: ignore[misc]


def _alone(task: Callable[[], Result]) -> Result:
    before, _here.alone = _here.alone, True
    try:
        return task()
    finally:
        _here.alone = before


def _wait_for(futures: list[Future[Any]]) -> None:
    """Wait to the end even through Ctrl-C: nobody may write to our arrays once we have left."""
    interrupt: BaseException | None = None
    for future in futures:
        while not future.done():
            try:
                future.exception()  # waits; a task's own error stays in the future
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt


def _pool_of(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < size:
        if _pool is not None:
            _pool.shutdown(wait=False)
        _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="nplm"), size
    return _pool


class _QuickSwitches:
    """Python's threads change over sooner while anybody is inside; the last out puts it back."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.before = sys.getswitchinterval()
                sys.setswitchinterval(min(self.before, _SWITCH))
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                sys.setswitchinterval(self.before)


_quick_switches = _QuickSwitches()


def _forget_pool() -> None:
    """A forked child has none of its parent's threads, and nobody who would put anything back."""
    global _pool, _pool_size, _pool_lock, _blas_held, _quick_switches
    _pool, _pool_size, _pool_lock, _blas_held = None, 0, threading.Lock(), 0
    if _quick_switches.users:
        sys.setswitchinterval(_quick_switches.before)
    _quick_switches = _QuickSwitches()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


# ---- the BLAS ------------------------------------------------------------------------------------
def can_hold_blas() -> bool:
    """Whether threadpoolctl is here to hold the BLAS at one thread."""
    global _blas
    if _blas is None:
        try:
            from threadpoolctl import ThreadpoolController
        except ModuleNotFoundError:
            _blas = False
        else:
            _blas = ThreadpoolController().select(user_api="blas")
    return _blas is not False


def blas_is_held() -> bool:
    """Whether products run on the thread that calls them: then a kernel may split a product."""
    return _blas_held > 0


def products_in_parts(n: int, body: Callable[[int, int], Any], least: int = 1) -> None:
    """`in_parts` for a body that makes products: in one part while the BLAS has its own threads."""
    if blas_is_held():
        in_parts(n, body, least)
    elif n > 0:
        body(0, n)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy's products on one thread each inside the block; the BLAS is as it was after it.

    Whoever has set it puts it back: OpenBLAS 0.3.31 does not obey another thread. So of two Python
    threads that train at once, the second may find itself with a BLAS of many threads: slower.
    """
    global _blas_held
    if _blas_held or not can_hold_blas():
        yield
        return
    with _blas.limit(limits=1):
        _blas_held = 1
        try:
            yield
        finally:
            _blas_held = 0

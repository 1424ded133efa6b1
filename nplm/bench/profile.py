"""Where the time of a training run goes: seconds and bytes of every op, forward and backward.

`with profile() as found: ...`, then `print(found.table())`.  Every op asks `choose` for its body:
that is where the clock is put.  Off, it costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from nplm.autograd import op as ops
from nplm.backend import threads
from nplm.train import step

PARTS = ("forward", "backward", "update")
ENGINE = "Python and engine"  # what no op does: the graph, sums of gradients, loops, checks


@dataclass
class Row:
    """One op in one part of the work."""

    name: str
    part: str  # forward, backward or update
    calls: int = 0
    seconds: float = 0.0  # added over threads
    bytes: int = 0  # of the arrays that went in and came out


class _Here(threading.local):
    busy = False  # inside of a row: what runs there is part of it


class Profile:
    """What was seen.  Times are seconds of work, added over threads; waiting threads do none."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}
        self._lock, self._here = threading.Lock(), _Here()
        self._elsewhere = 0.0  # seconds of work beyond those of the thread that profiles
        self.seconds = 0.0  # from the beginning to the end of the block

    # ---- what was found ------------------------------------------------------
    @property
    def total(self) -> float:
        """Seconds of work of all threads: every row's and the engine's."""
        seen = sum(row.seconds for row in self._rows.values())
        return max(self.seconds + self._elsewhere, seen)

    def rows(self) -> list[Row]:
        """The largest first, and last what no op does; their seconds add up to `total`."""
        rows = sorted(self._rows.values(), key=lambda row: -row.seconds)
        rest = self.total - sum(row.seconds for row in rows)
        return [*rows, Row(ENGINE, "", 0, rest, 0)]

    def to_json(self, steps: int = 1) -> dict[str, Any]:
        """Seconds and bytes of one of `steps` updates, and shares of the total."""
        total = self.total or 1.0
        rows = [
            {
                "name": r.name, "part": r.part, "calls": r.calls / steps, "bytes": r.bytes / steps,
                "seconds": r.seconds / steps, "share": r.seconds / total,
            }
            for r in self.rows()
        ]  # fmt: skip
        return {"seconds": self.seconds / steps, "work": self.total / steps, "rows": rows}

    def table(self, steps: int = 1) -> str:
        """The rows in fewer than 100 columns, times of one of `steps` updates."""
        return table(self.to_json(steps))

    # ---- watching ------------------------------------------------------------
    def add(self, name: str, part: str, seconds: float, n_bytes: int) -> None:
        """Count one call."""
        with self._lock:
            row = self._rows.setdefault((name, part), Row(name, part))
            row.calls, row.seconds, row.bytes = (
                row.calls + 1, row.seconds + seconds, row.bytes + n_bytes
            )  # fmt: skip

    def timed(self, name: str, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call` as a row; inside of another row it is that row's."""

        def run(*args: Any, **options: Any) -> Any:
            if self._here.busy:
                return call(*args, **options)
            self._here.busy = True
            began = time.perf_counter()
            try:
                result = call(*args, **options)
                seconds = time.perf_counter() - began
            finally:
                self._here.busy = False
            self.add(name, part, seconds, n_bytes(args) + n_bytes(result))
            return result

        return run

    def choosing(self, choose: Callable[..., Any]) -> Callable[..., Any]:
        """`overrides.choose`, whose kernels are rows; their backwards too."""

        def chosen(name: str, xp: Any, arrays: Any, options: Any) -> Any:
            is_update = name in ops.UPDATES
            known: Any = ops.UPDATES if is_update else ops.OPS
            body = choose(name, xp, arrays, options) or known[name].raw
            if is_update:
                return self.timed(name, "update", body)
            forward = self.timed(name, "forward", lambda *a, **o: _Made(body(*a, **o)))

            def run(*args: Any, **options: Any) -> Any:
                value, backward = forward(*args, **options).value
                return value, backward and self.timed(name, "backward", backward)

            return run

        return chosen

    def running(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`threads.run`, whose tasks' own seconds take the place of the time that all took."""

        def timed_run(tasks: Sequence[Callable[[], Any]]) -> Any:
            if self._here.busy or len(tasks) == 1:
                return run(tasks)
            seconds = [0.0] * len(tasks)

            def task(i: int) -> Any:
                began = time.perf_counter()
                try:
                    return tasks[i]()
                finally:
                    seconds[i] = time.perf_counter() - began

            began = time.perf_counter()
            try:
                return run([lambda i=i: task(i) for i in range(len(tasks))])
            finally:
                more = sum(seconds) - (time.perf_counter() - began)
                with self._lock:
                    self._elsewhere += more

        return timed_run


class _Made:
    """What an op returned: its bytes are the value's, its backward holds what it likes."""

    def __init__(self, value: Any) -> None:
        self.value = value


def n_bytes(x: Any) -> int:
    """Bytes of all arrays in tuples and lists; 0 of anything else."""
    if isinstance(x, _Made):
        return n_bytes(x.value[0])
    if isinstance(x, tuple | list):
        return sum(map(n_bytes, x))
    size = getattr(x, "nbytes", 0)  # of an array; namespaces and numbers have none
    return size if isinstance(size, int) else 0


@contextmanager
def profile() -> Iterator[Profile]:
    """Watch every op, update and clipping of this process inside the block, on any thread."""
    found = Profile()
    watches: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (ops, "choose", found.choosing),
        (threads, "run", found.running),
        (step, "clip_grad_norm_", partial(found.timed, "clip_grad_norm_", "update")),
    ]
    before = [getattr(module, name) for module, name, _ in watches]
    for (module, name, watch), original in zip(watches, before):
        setattr(module, name, watch(original))
    began = time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - began
        for (module, name, _), original in zip(watches, before):
            setattr(module, name, original)


def table(found: dict[str, Any]) -> str:
    """What `Profile.to_json` gave as a table: an op a line, its parts side by side."""
    ops: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        ops.setdefault(row["name"], {})[row["part"]] = row
    lines = [f"{'op':<26}{'calls':>7}{'forward':>11}{'backward':>11}{'update':>11}{'bytes':>10}"
             f"{'GB/s':>7}{'share':>8}"]  # fmt: skip
    lines.append("─" * len(lines[0]))

    def size(parts: dict[str, Any]) -> float:
        return -sum(row["share"] for row in parts.values())

    for name, parts in sorted(ops.items(), key=lambda item: (item[0] == ENGINE, size(item[1]))):
        seconds, moved = (sum(row[key] for row in parts.values()) for key in ("seconds", "bytes"))
        cells = [f"{1e3 * parts[p]['seconds']:.3f} ms" if p in parts else "" for p in PARTS]
        if name == ENGINE:
            cells = ["", "", f"{1e3 * seconds:.3f} ms"]
        calls = max(row["calls"] for row in parts.values())
        rate = f"{moved / seconds / 1e9:.1f}" if moved and seconds > 0 else ""
        lines.append(f"{name:<26}{f'{calls:g}' if calls else '':>7}"
                     + "".join(f"{cell:>11}" for cell in cells)
                     + f"{f'{moved / 1e6:,.1f} MB' if moved else '':>10}{rate:>7}"
                     + f"{100 * -size(parts):>6.1f} %")  # fmt: skip
    lines.append(f"{'one update':<26}{1e3 * found['seconds']:.1f} ms, {1e3 * found['work']:.1f} ms "
                 "of work on all threads")  # fmt: skip
    return "\n".join(lines) + "\n"

"""L-BFGS: Newton's method with a curvature learned from the last steps; it calls the loss itself.

The numbers are 0-d arrays in the parameters' dtype or Python floats, each where torch has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from nplm.autograd.grad_mode import enable_grad
from nplm.autograd.graph import Array
from nplm.autograd.op import wrap
from nplm.autograd.tensor import Tensor
from nplm.optim.optimizer import (
    Group,
    Number,
    Optimizer,
    Params,
    map_arrays,
    one_number,
    plain,
    plain_options,
    refuse_negative,
)

Scalar: TypeAlias = Any  # a 0-d array or a Python number


class Point(NamedTuple):
    """A point of a line search: x + t d."""

    t: Scalar
    loss: Scalar
    gradient: Array
    slope: Scalar  # along d


def cubic_minimum(
    xp: Any, p: Point, q: Point, bounds: tuple[Scalar, Scalar] | None = None
) -> Scalar:
    """Where the cubic through two points and their slopes is least, inside `bounds`.

    Without bounds, between the points. Their middle where the cubic has no minimum (Nocedal and
    Wright, Numerical Optimization, equation 3.59).
    """
    low, high = bounds or (min(p.t, q.t), max(p.t, q.t))
    chord = p.slope + q.slope - 3 * (p.loss - q.loss) / (p.t - q.t)
    square = chord * chord - p.slope * q.slope
    if not square >= 0:
        return (low + high) / 2.0
    root = xp.sqrt(square)
    a, b = (p, q) if p.t <= q.t else (q, p)  # from the right end
    t = b.t - (b.t - a.t) * ((b.slope + root - chord) / (b.slope - a.slope + 2 * root))
    return min(max(t, low), high)


def strong_wolfe(
    xp: Any, evaluate: Callable[[Scalar], Point], start: Point, t: Scalar, d: Array,
    tolerance_change: float, max_evaluations: int, c1: float = 1e-4, c2: float = 0.9,
) -> Point:  # fmt: skip
    """The point of a step with enough decrease and a flat enough slope.

    Nocedal and Wright, algorithms 3.5 (widen until a bracket holds such a step) and 3.6 (narrow
    it). `evaluate(t)` gives the point of the step t; after `max_evaluations` the best end is taken.
    """

    def too_high(point: Point) -> bool:
        return bool(point.loss > start.loss + c1 * point.t * start.slope)

    def flat(point: Point) -> bool:
        return bool(abs(point.slope) <= -c2 * start.slope)

    previous, point, n = start, evaluate(t), 0  # n: evaluations after the first
    while n < max_evaluations:
        if too_high(point) or (n > 1 and point.loss >= previous.loss):
            bracket = [previous, point]
            break
        if flat(point):
            return point
        if point.slope >= 0:
            bracket = [previous, point]
            break
        limits = (point.t + 0.01 * (point.t - previous.t), point.t * 10)
        t = cubic_minimum(xp, previous, point, limits)
        previous, point, n = point, evaluate(t), n + 1
    else:
        bracket = [start, point]

    low, high = (0, 1) if bracket[0].loss <= bracket[1].loss else (1, 0)
    longest, stuck, done = xp.amax(xp.abs(d)), False, False
    while not done and n < max_evaluations:
        if abs(bracket[1].t - bracket[0].t) * longest < tolerance_change:
            break
        t = cubic_minimum(xp, bracket[0], bracket[1])
        left, right = min(b.t for b in bracket), max(b.t for b in bracket)
        margin = 0.1 * (right - left)
        near = bool(min(right - t, t - left) < margin)  # an end again: move the second time
        if near and (stuck or t >= right or t <= left):
            t = right - margin if abs(t - right) < abs(t - left) else left + margin
            near = False
        stuck = near
        point, n = evaluate(t), n + 1
        if too_high(point) or point.loss >= bracket[low].loss:
            bracket[high] = point
            low, high = (0, 1) if bracket[0].loss <= bracket[1].loss else (1, 0)
            continue
        done = flat(point)
        if not done and point.slope * (bracket[high].t - bracket[low].t) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = point
    return bracket[low]


def direction(xp: Any, memory: Group, gradient: Array, history_size: int) -> Array:
    """Minus the inverse Hessian times the gradient, from the remembered steps s and changes y.

    The two loops of Nocedal (1980); `memory` is the state of the optimizer, and learns here.
    """
    y = gradient - memory["prev_flat_grad"]
    s = memory["d"] * memory["t"]
    ys = xp.matmul(y, s)
    changes, steps, ro = memory["old_dirs"], memory["old_stps"], memory["ro"]
    if ys > 1e-10:
        if len(changes) == history_size:
            for remembered in (changes, steps, ro):
                remembered.pop(0)
        changes.append(y)
        steps.append(s)
        ro.append(1.0 / ys)
        memory["H_diag"] = ys / xp.matmul(y, y)
    al = memory.setdefault("al", [None] * history_size)
    q = -gradient
    for i in reversed(range(len(changes))):
        al[i] = xp.matmul(steps[i], q) * ro[i]
        q = q + -al[i] * changes[i]
    r = q * memory["H_diag"]
    for i in range(len(changes)):
        r = r + (al[i] - xp.matmul(changes[i], r) * ro[i]) * steps[i]
    return r


class LBFGS(Optimizer):
    """Limited-memory BFGS (Liu and Nocedal, 1989).  Twin: torch.optim.LBFGS.

    lr              length of a step, or of a line search's first
    max_iter, max_eval  iterations and evaluations of one `step`; max_eval None: 1.25 max_iter
    tolerance_grad      the largest gradient at which it stops
    tolerance_change    the largest change of parameters or loss at which it stops
    history_size    how many steps it remembers
    line_search_fn  None, or "strong_wolfe"

    One group only; `step(closure)` calls the closure several times, so `nplm.train.fit` refuses it.
    State, of the first parameter for all of them: func_evals, n_iter, and torch's d, t, old_dirs,
    old_stps, ro, H_diag, al, prev_flat_grad, prev_loss. Raises ValueError as torch does.
    """

    needs_closure = True

    def __init__(
        self, params: Params, lr: Number = 1, max_iter: int = 20, max_eval: int | None = None,
        tolerance_grad: float = 1e-7, tolerance_change: float = 1e-9, history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:  # fmt: skip
        lr = one_number("lr", lr)
        refuse_negative({"learning rate": lr})
        max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
        defaults: Group = {"lr": lr, "max_iter": max_iter, "max_eval": max_eval}
        defaults |= {"tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change}
        defaults |= {"history_size": history_size, "line_search_fn": line_search_fn}
        super().__init__(params, defaults)
        if len(self.param_groups) != 1:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")

    # ---- parameters as one long vector ---------------------------------------
    @property
    def _params(self) -> list[Tensor]:
        params: list[Tensor] = self.param_groups[0]["params"]
        return params

    def _flat_gradient(self) -> Array:
        flat = [
            p.xp.zeros((p.numel(),), p.array) if p.grad is None else p.grad.array.reshape((-1,))
            for p in self._params
        ]
        return self._params[0].xp.concat(flat, 0)

    def _move(self, t: Scalar, d: Array) -> None:
        """p += t d for all parameters."""
        start = 0
        for p in self._params:
            end = start + p.numel()
            p.array += plain(t) * d[start:end].reshape(p.shape)
            start = end

    # ---- the step ------------------------------------------------------------
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Up to `max_iter` iterations.  `closure()` clears gradients, runs backward, returns loss.

        Returns the loss of the first call.
        """
        if closure is None:
            raise TypeError("LBFGS.step: expected a closure that computes the loss and gradients")
        if self.param_groups[0]["line_search_fn"] not in (None, "strong_wolfe"):
            raise RuntimeError("only 'strong_wolfe' is supported")
        if len(self.param_groups) != 1:
            raise AssertionError(
                f"Expected exactly one param_group, but got {len(self.param_groups)}"
            )
        memory = self.state[self._params[0]]
        memory.update(map_arrays(memory, lambda x: x.array))
        try:
            with self._params[0].xp.quiet():
                return self._iterate(memory, plain_options(self.param_groups[0]), closure)
        finally:
            memory.update(map_arrays(memory, lambda x: wrap(x, None)))

    def _iterate(self, memory: Group, group: Group, closure: Callable[[], Any]) -> Any:
        """The iterations of one step; `memory` is the state, in raw arrays."""
        xp, lr, max_iter = self._params[0].xp, group["lr"], group["max_iter"]
        memory.setdefault("func_evals", 0)
        memory.setdefault("n_iter", 0)
        last = memory["func_evals"] + group["max_eval"]

        def evaluate() -> tuple[Any, Array]:
            memory["func_evals"] += 1
            with enable_grad():
                return closure(), self._flat_gradient()

        def along(t: Scalar) -> Point:
            before = [xp.copy(p.array) for p in self._params]
            self._move(t, memory["d"])
            value, gradient = evaluate()
            for p, array in zip(self._params, before):
                p.array[...] = array
            return Point(t, float(value), gradient, xp.matmul(gradient, memory["d"]))

        def at_most(x: Array, tolerance: float) -> bool:
            return bool(xp.amax(xp.abs(x)) <= tolerance)

        first, gradient = evaluate()
        loss = float(first)
        if at_most(gradient, group["tolerance_grad"]):
            return first
        for n in range(1, max_iter + 1):
            memory["n_iter"] += 1
            if memory["n_iter"] == 1:
                memory.update(d=-gradient, old_dirs=[], old_stps=[], ro=[], H_diag=1)
                t = min(1.0, 1.0 / xp.sum(xp.abs(gradient))) * lr
            else:
                memory["d"] = direction(xp, memory, gradient, group["history_size"])
                t = lr
            memory.update(t=t, prev_flat_grad=xp.copy(gradient), prev_loss=loss)
            slope = xp.matmul(gradient, memory["d"])
            if slope > -group["tolerance_change"]:
                break

            if group["line_search_fn"] is not None:
                start, left = Point(0, loss, gradient, slope), last - memory["func_evals"]
                memory["t"], loss, gradient, _ = strong_wolfe(
                    xp, along, start, t, memory["d"], group["tolerance_change"], left
                )
            self._move(memory["t"], memory["d"])
            if n == max_iter:
                break
            if group["line_search_fn"] is None:
                value, gradient = evaluate()
                loss = float(value)
            if memory["func_evals"] >= last or at_most(gradient, group["tolerance_grad"]):
                break
            if at_most(memory["d"] * memory["t"], group["tolerance_change"]):
                break
            if abs(loss - memory["prev_loss"]) < group["tolerance_change"]:
                break
        return first

"""How an update's time grows with each size, beside the operations that are counted for it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nplm.bench.flops import attention_share, step_flops
from nplm.bench.rounds import Engine, take_turns, workers
from nplm.bench.settings import Setting

Points = dict[str, list[tuple[int, Setting]]]


def points(base: Setting) -> Points:
    """Five or so settings an axis: one size moves, the others stay."""
    m = base.model
    D = m.n_embd // m.n_head

    def model(**changes: Any) -> Setting:
        return replace(base, model=replace(m, **changes))

    kv = {} if m.n_kv_head is None else {"n_kv_head": 1}
    heads = [h for h in (m.n_head // 2, m.n_head, 2 * m.n_head, 4 * m.n_head) if h]
    return {
        "layers": [(n, model(n_layer=n)) for n in (1, 2, 4, 8)],
        "channels": [(D * h, model(n_embd=D * h, n_head=h, **kv)) for h in heads],
        "context": [(t, model(context=t)) for t in (32, 64, 128, 256, 512)],
        "batch": [(b, replace(base, batch_size=b)) for b in (3, 6, 12, 24)],
        "vocabulary": [(v, model(vocab_size=v)) for v in (65, 512, 4096, 32768)],
        "micro-batches": [(k, replace(base, accumulate=k)) for k in (1, 2, 4, 8, 16)],
    }


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """d log y / d log x, by least squares: 1 where y is proportional to x."""
    x, y = [math.log(v) for v in xs], [math.log(v) for v in ys]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def scaling(setting: Setting, engines: Sequence[Engine], options: Any) -> dict[str, Any]:
    """Every axis: times, counted operations and both slopes; attention's share along contexts."""
    engine = engines[0]
    found = {}
    for axis, settings in points(setting).items():
        with workers([engine] * len(settings), [s for _, s in settings]) as crew:
            timed = take_turns(crew, options.rounds, options.steps)
            profiles = [w.ask("profile", n=3) for w in crew] if axis == "context" else []
        sizes = [size for size, _ in settings]
        seconds = [t["median"] for t in timed]
        counted = [sum(step_flops(s).values()) for _, s in settings]
        found[axis] = {
            "sizes": sizes, "tokens": [s.tokens for _, s in settings], "seconds": seconds,
            "flops": counted, "peak_bytes": [t["peak_bytes"] for t in timed],
            "slope": slope(sizes, seconds), "slope_counted": slope(sizes, counted),
        }  # fmt: skip
        if profiles:
            found[axis]["attention"] = [
                sum(r["share"] for r in p["rows"] if "attention" in r["name"]) for p in profiles
            ]
            found[axis]["attention_counted"] = [attention_share(s) for _, s in settings]
    return {"axes": found}

"""The tables and the chart of docs/benchmarks.md, and the README's, from the JSON of the results.

    python -m benchmarks tables [--json docs/benchmarks.json] [--add timings.json ...]

A piece of a page begins with `<!-- benchmark: NAME -->` and ends with `<!-- end -->`.
"""

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "benchmarks.json"
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
CHART = ROOT / "docs" / "figures" / "benchmarks.svg"
PIECE = re.compile(r"(<!-- benchmark: (\S+) -->\n)(.*?)(^<!-- end -->$)", re.M | re.S)
Results = list[dict[str, Any]]
WAITING = "No result yet.\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column is words, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:,.{max(0, 2 - (seconds >= 1e-2))}f}"


def mb(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.0f}"


def by_spread(ratio: dict[str, float]) -> str:
    """A ratio with its quartiles: 0.88 (0.87 to 0.90)."""
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def threads_of(result: dict[str, Any]) -> str:
    return f"{result['threads']} thread" + "s" * (result["threads"] != 1)


# ---- updates -------------------------------------------------------------------------------------
def step(results: Results) -> str:
    """Every engine of every configuration: a row each."""
    head = ["configuration", "engine", "ms an update", "tokens/s", "nplm's time to its",
            "peak MB", "nplm's memory to its", "compiling s"]  # fmt: skip
    rows = []
    for r in results:
        where = f"{r['config']}: {r['sizes']}, {threads_of(r)}"
        for name, e in r["engines"].items():
            rows.append([
                where, name, ms(e["median"]), f"{r['tokens'] / e['median']:,.0f}",
                *_beside(e),
            ])  # fmt: skip
            where = ""
    return table(head, rows)


def _beside(e: dict[str, Any]) -> list[str]:
    """nplm's time to this engine's, its memory, nplm's to that, and the seconds of compiling."""
    compiling = e.get("compile_seconds")
    return [
        by_spread(e["ratio"]) if "ratio" in e else "",
        mb(e["peak_bytes"]),
        f"{e['peak_ratio']:.2f}" if "peak_ratio" in e else "",
        "" if compiling is None else f"{compiling:.0f}",
    ]


def agreement(results: Results) -> str:
    """How far the worst gradient of each engine is from nplm's, before anything was timed."""
    rows = [
        [f"{r['config']}, {threads_of(r)}", name, f"{abs(e['loss'] - ours['loss']):.0e}",
         f"{e['gradient_off']:.1e}", f"`{e['gradient_worst']}`"]
        for r in results
        if (ours := r["engines"]["nplm"]).get("loss") is not None
        for name, e in r["engines"].items()
        if "gradient_off" in e
    ]  # fmt: skip
    return table(["configuration", "engine", "loss", "worst gradient", "of"], rows)


def readme(results: Results) -> str:
    """The ratios alone, a row a configuration."""
    head = ["nplm, divided by", "time of torch", "of torch.compile", "memory of torch"]
    rows = []
    for r in results:
        engines = r["engines"]
        if "torch" in engines and r["config"] != "block":
            compiled = engines.get("torch.compile")
            rows.append([
                f"{r['sizes']}, {threads_of(r)}", f"{engines['torch']['ratio']['median']:.2f}",
                f"{compiled['ratio']['median']:.2f}" if compiled else "",
                f"{engines['torch']['peak_ratio']:.2f}",
            ])  # fmt: skip
    return table(head, rows)


# ---- the torch path ------------------------------------------------------------------------------
def train(results: Results) -> str:
    """Updates on torch tensors: a row an engine of every model and batch."""
    head = ["model and batch", "engine", "ms an update", "tokens/s", "of the matrix rate",
            "nplm's time to its", "peak MB", "nplm's memory to its", "compiling s"]  # fmt: skip
    rows = []
    for r in results:
        where = f"{r['config']}: {r['sizes']}, {r['dtype']}"
        if r["device"] == "cpu":
            where += f", {threads_of(r)}"
        for name, e in r["engines"].items():
            speed = r["tokens"] / e["median"]
            share = speed * r["flops_per_token"] / r["matrix_rate"]["flops_per_second"]
            rows.append([
                where, name, ms(e["median"]), f"{speed:,.0f}", f"{share:.1%}",
                *_beside(e),
            ])  # fmt: skip
            where = ""
    return table(head, rows)


def train_agreement(results: Results) -> str:
    """How far each engine's gradients are from torch's in float32, before anything was timed."""
    rows = [
        [f"{r['config']} {r['dtype']} B{r['batch']}", name, e["versions"].get("attention", ""),
         f"{e['gradient_off']:.1e}", f"`{e['gradient_worst']}`"]
        for r in results
        for name, e in r["engines"].items()
    ]  # fmt: skip
    return table(["model and batch", "engine", "attention by", "worst gradient", "of"], rows)


def best_batches(results: Results) -> str:
    """nplm and torch, each by its fastest engine at its fastest batch."""
    rows = []
    for name, dtype in dict.fromkeys((r["config"], r["dtype"]) for r in results):
        alike = [r for r in results if (r["config"], r["dtype"]) == (name, dtype)]
        fastest: dict[str, tuple[float, str]] = {}
        for r in alike:
            for engine, e in r["engines"].items():
                kind, found = engine.split()[0], (r["tokens"] / e["median"], engine)
                said = (found[0], f"{found[0]:,.0f} ({engine}, B{r['batch']})")
                fastest[kind] = max(fastest.get(kind, said), said)
        ours = fastest["nplm"][0]
        kinds = ("nplm", "torch.compile", "torch")
        rows.append([
            f"{name}, {dtype}", *(fastest[k][1] if k in fastest else "" for k in kinds),
            *(f"{ours / fastest[k][0]:.2f}" if k in fastest else "" for k in kinds[1:]),
        ])  # fmt: skip
    head = ["model", "nplm tokens/s", "torch.compile tokens/s", "torch tokens/s",
            "nplm's speed to torch.compile's", "to torch's"]  # fmt: skip
    return table(head, rows)


def rate_in_words(rate: dict[str, Any], dtype: str) -> str:
    """What the device multiplies at."""
    speed = rate["flops_per_second"] / 1e12
    return f"{dtype} products of side {rate['side']}: {speed:,.2f} TFLOP/s"


# ---- ops, generation, scaling, memory ------------------------------------------------------------
def ops(results: Results) -> str:
    """One call, forward and backward; a row an op, the costliest first."""
    shown = []
    for r in results:
        head = [f"{r['config']}: op", "inputs", "calls", *(f"{e} ms" for e in r["engines"])]
        rows = [
            [row["name"], " ".join("x".join(map(str, s)) or "()" for s in row["shapes"]),
             str(row["calls"]), *(ms(row["seconds"][e]) for e in r["engines"])]
            for row in r["ops"]
        ]  # fmt: skip
        shown.append(table(head, rows))
    return "\n".join(shown)


def generate(results: Results) -> str:
    """Tokens a second, by the tokens already made."""
    shown = []
    for r in results:
        head = [f"{r['config']}: tokens made", *(f"{name} tokens/s" for name in r["engines"])]
        speeds = [e["seconds"] for e in r["engines"].values()]
        rows = [[str(n), *(f"{1 / s:,.0f}" for s in each)]
                for n, *each in zip(r["tokens_made"], *speeds)]  # fmt: skip
        shown.append(table(head, rows))
    return "\n".join(shown)


def scaling(results: Results) -> str:
    """A row a size, and the slopes: d log(time) / d log(size), measured and counted."""
    rows = []
    for r in results:
        for axis, a in r["axes"].items():
            for i, size in enumerate(a["sizes"]):
                attention = ""
                if "attention" in a:
                    attention = f"{a['attention'][i]:.0%} / {a['attention_counted'][i]:.0%}"
                rows.append([
                    f"{r['config']}: {axis} {size:,}", ms(a["seconds"][i]),
                    f"{1e6 * a['seconds'][i] / a['tokens'][i]:.2f}",
                    f"{a['flops'][i] / 1e9:,.2f}", f"{a['flops'][i] / a['seconds'][i] / 1e9:,.0f}",
                    attention, f"{a['slope']:.2f} / {a['slope_counted']:.2f}" if not i else "",
                ])  # fmt: skip
    head = ["size", "ms an update", "microseconds a token", "GFLOP", "GFLOP/s",
            "attention: time / counted", "slope: time / counted"]  # fmt: skip
    return table(head, rows)


def memory(results: Results) -> str:
    """The peak of each engine, and growth."""
    rows = []
    for r in results:
        for name, e in r["engines"].items():
            grown = ""
            if name == "nplm":
                g = r["growth"]
                grown = f"{g['grown_bytes'] / 1e6:+.1f} MB in {g['updates'][-1]:,} updates"
            ratio = f"{e['peak_ratio']:.2f}" if "peak_ratio" in e else ""
            rows.append([f"{r['config']}, {name}", mb(e["peak_bytes"]), ratio, grown])
    return table(["engine", "peak MB", "nplm's to its", "growth"], rows)


def where(m: dict[str, Any]) -> str:
    """A machine in a line, with the variables that hold its libraries to some kernels."""
    pinned = "".join(f", {k}={v}" for k, v in m["environment"].items())
    card = f"{m['card']}; " if "card" in m else ""
    return (
        f"{card}{m['cpu']}, {m['cores']} cores; Python {m['python']}, NumPy {m['numpy']}, "
        f"{m['blas']}{pinned}"
    )


def machine(results: Results) -> str:
    """Where and by which command each result was made."""
    lines = []
    for r in results:
        engines = r.get("engines", {})
        engines = engines if isinstance(engines, dict) else {}  # a list of names: ops, generate
        torch = engines.get("torch") or engines.get("torch.compile") or {}
        version = torch.get("versions", {}).get("torch")
        lines.append(
            f"* {r['date']}: `{r['command']}`, {r['rounds']} rounds on {where(r['machine'])}"
            + (f", torch {version} with {torch['versions']['blas']}" if version else "")
            + (f"; {rate_in_words(r['matrix_rate'], r['dtype'])}" if "matrix_rate" in r else "")
        )
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


SHOWN: dict[str, Callable[[Results], str]] = {
    "step": step, "ops": ops, "generate": generate, "scaling": scaling, "memory": memory,
    "train": train,
}  # fmt: skip
PIECES: dict[str, tuple[Callable[[Results], str], Callable[[dict[str, Any]], bool]]] = {
    # name of a piece -> what makes it, and of which results
    "step": (step, lambda r: r["subject"] == "step" and r["config"] != "block"),
    "block": (step, lambda r: r["subject"] == "step" and r["config"] == "block"),
    "agreement": (agreement, lambda r: r["subject"] == "step"),
    "readme": (readme, lambda r: r["subject"] == "step"),
    **{name: (SHOWN[name], lambda r, name=name: r["subject"] == name)
       for name in ("ops", "generate", "scaling", "memory")},
    "train": (train, lambda r: r["subject"] == "train" and r["device"] == "cpu"),
    "train-gpu": (train, lambda r: r["subject"] == "train" and r["device"] == "cuda"),
    "best-gpu": (best_batches, lambda r: r["subject"] == "train" and r["device"] == "cuda"),
    "train-agreement": (train_agreement, lambda r: r["subject"] == "train"),
    "machine": (machine, lambda r: True),
}  # fmt: skip


# ---- pages ---------------------------------------------------------------------------------------
def filled(page: str, held: dict[str, Any]) -> str:
    """A page with every piece made anew from the results."""

    def fresh(piece: re.Match[str]) -> str:
        head, name, _, end = piece.groups()
        make, wanted = PIECES[name]
        chosen = [r for r in held.values() if wanted(r)]
        return head + (make(chosen) if chosen else WAITING) + end

    new, n = PIECE.subn(fresh, page)
    if n != len(re.findall(r"^<!-- benchmark:", page, re.M)):
        raise ValueError("a benchmark's piece without its end")
    return new


def write(path: Path, more: Sequence[Path] = ()) -> None:
    """Fill the pages, and draw the chart where matplotlib is installed.

    more: files of results, as a run on a card leaves them, that are added to the first one before.
    """
    for file in more:
        for name, result in results.held(file).items():
            results.add(path, name, result)
    held = results.held(path)
    for page in PAGES:
        if page.exists():
            text = page.read_text()
            new = filled(text, held)
            print(page.relative_to(ROOT), "as it was" if new == text else "written anew")
            page.write_text(new)
    if find_spec("matplotlib") is None:
        print("no chart: needs matplotlib: run `pip install matplotlib`")
        return
    from benchmarks import chart

    chart.draw(held, CHART)

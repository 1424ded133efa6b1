"""Write into parity.md what its commands print: `python docs/outputs.py`; `--check` compares.

A piece begins with `<!-- output: NAME -->` and ends with `<!-- end -->`. `--check` compares up to
numbers, and up to the names of the tensors that were worst: they differ from machine to machine.
Needs torch; takes two minutes, `--check` half of one, since its runs are shorter.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

from nplm.cli import main as nplm
from nplm.parity import tolerances

PAGE = Path(__file__).with_name("parity.md")
PIECE = re.compile(r"(<!-- output: ([^>]+) -->\n)(.*?)(^<!-- end -->$)", re.M | re.S)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?|\binf\b")
SHORT = {"nplm parity": ["--steps", "12"]}  # what `--check` adds


def printed(command: str, more: list[str]) -> str:
    """What a command says, in a block of text."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out):
        nplm(command.split()[1:] + more)
    out.flush()
    return f"```text\n$ {command}\n{out.buffer.getvalue().decode()}```\n"


def budgets() -> str:
    """The table of tolerances.py, as Markdown."""
    rows = ["| phase | may be off by | why, and what was measured |", "|---|---|---|"]
    for phase, (ulps, summed, lr_ulps, reason) in tolerances.ISOLATED.items():
        allowed = f"{ulps:g} eps " + ("(sqrt(terms) term + largest)" if summed else "largest")
        allowed += f" + {lr_ulps:g} eps lr" if lr_ulps else ""
        rows.append(f"| {phase} | {allowed} | {reason} |")
    rows.append(f"| {', '.join(tolerances.EXACT_PHASES)} | 0 | the same bits: no sums of tensors |")
    return "\n".join(rows) + "\n"


def calibration() -> str:
    """How far torch is from itself, in a block of text."""
    from nplm.parity.calibrate import calibrate, table

    return f"```text\n{table(calibrate())}```\n"


def made(name: str, more: dict[str, list[str]]) -> str:
    """A piece of the page, new."""
    if name == "budgets":
        return budgets()
    return calibration() if name == "calibration" else printed(name, more.get(name, []))


def shape(text: str) -> list[str]:
    """The words of a piece without numbers; of a row of a run's table the phase and the mark."""
    lines = []
    for line in text.splitlines():
        row = re.match(r"(\w+) +[\d,]+ +\S+ +\S+ +\S+  \S+ +([✓✗].*)$", line)
        lines.append(f"{row[1]} {row[2]}" if row else NUMBER.sub("#", line))
    return " ".join(lines).split()


def main(check: bool) -> None:
    """Make every piece; write the page, or with `check` say which differ and fail."""
    differ = []

    def fresh(piece: re.Match[str]) -> str:
        head, name, shown, end = piece.groups()
        new = made(name, SHORT if check else {})
        if new != shown if name == "budgets" else shape(new) != shape(shown):
            differ.append(name)
        return head + new + end

    text = PAGE.read_text(encoding="utf-8")
    new, n = PIECE.subn(fresh, text)
    if n != text.count("<!-- output:"):
        raise SystemExit(f"{PAGE.name}: an output without its end")
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    for name in differ:
        print(name, "is not what is printed" if check else "is written anew")
    sys.exit(check and bool(differ))


if __name__ == "__main__":
    main("--check" in sys.argv[1:])

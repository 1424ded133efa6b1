"""Write into the pages the source that they show: `python docs/include.py`; `--check` compares.

A page says `<!-- include: PATH NAME -->` (or PATH alone: the whole file), then has a block of code
that ends in `<!-- end -->`. GitHub, editors and Sphinx show the block and hide the comments.
"""

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIECE = re.compile(
    r"^(<!-- include: (\S+)(?: (\S+))? -->\n```py\n)(.*?)(^```\n<!-- end -->)$", re.M | re.S
)


def source_of(path: str, name: str | None) -> str:
    """A whole file, or the function, class or method `name` of it, as it is written there."""
    text = (ROOT / path).read_text()
    if name is None:
        return text
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = [n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == part]
        if not found:
            raise SystemExit(f"{path} defines no {name}")
        node = found[-1]
    first = min(n.lineno for n in (node, *node.decorator_list))
    return textwrap.dedent("".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno]))


def main(check: bool) -> None:
    """Name every piece that differs; write it anew, or with `check` fail."""
    differ = []

    def fresh(piece: re.Match[str]) -> str:
        head, path, name, shown, end = piece.groups()
        source = source_of(path, name)
        if source != shown:
            differ.append(f"{page.name}: {path} {name or ''}".rstrip())
        return head + source + end

    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text()
        new, n = PIECE.subn(fresh, text)
        if n != len(re.findall(r"^<!-- include:", text, re.M)):
            raise SystemExit(f"{page.name}: an include without its block or its end")
        if new != text and not check:
            page.write_text(new)
    for piece in differ:
        print(piece, "is not its source" if check else "is written anew")
    sys.exit(check and bool(differ))


if __name__ == "__main__":
    main("--check" in sys.argv[1:])

"""The rules of the code base as data, and the readers that the house tests share."""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nplm"

# In this order the code is read in an evening; the README says so too.
READING_ORDER = """
    autograd/graph autograd/tensor autograd/op ops/linear ops/norm ops/loss ops/attention nn/module
    nn/layers models/decoder optim/adam train/accumulation train/step train/loop
    train/early_stopping
    """.split()  # noqa: SIM905
EVENING = READING_ORDER[: READING_ORDER.index("train/loop") + 1]
READING_LIMIT = 1200  # lines of code of an evening, docstrings and comments not counted

# Who may import whom: a room (the longest matching name) and the rooms that it may know.
_BELOW_NN = "errors random backend autograd ops"
_BELOW_TRAIN = f"{_BELOW_NN} nn models optim data files generation"
MAY_IMPORT = {
    "errors": "",
    "random": "errors random",
    "files": "errors files",
    "backend": "errors backend",
    "autograd.graph": "errors",
    "autograd.grad_mode": "autograd.graph",
    "autograd.autocast": "errors autograd.graph backend",
    "autograd.host": "errors backend",
    "autograd.tensor": "errors autograd.graph autograd.host backend",
    "autograd.factory": "autograd.tensor backend",
    "autograd.overrides": "autograd.graph",
    "autograd.sinks": "autograd.graph backend",
    "autograd.op": (
        "errors autograd.graph autograd.overrides autograd.sinks autograd.tensor backend"
    ),
    "backend.numpy_kernels": "autograd.op autograd.sinks backend",
    "backend.torch_kernels": "autograd.graph autograd.op backend",
    "ops": "errors random backend autograd ops",
    "nn": f"{_BELOW_NN} nn",
    "models": f"{_BELOW_NN} nn models utils.checkpoint",
    "optim": "errors backend autograd ops optim",
    "optim.swa_utils": f"{_BELOW_NN} nn optim",
    "data": "errors files random data",
    "data.collate": "autograd backend ops",
    "data.dataset": "errors random autograd data",
    "utils": "data utils",
    "utils.checkpoint": "errors random autograd ops",
    "generation": f"{_BELOW_NN} nn models",
    "serialization": "errors autograd files",
    "train": f"{_BELOW_TRAIN} train",
    "parity": f"{_BELOW_TRAIN} train parity",
    "bench": f"{_BELOW_TRAIN} train parity bench",
    "cli": f"{_BELOW_TRAIN} train parity bench cli",
}
TYPE_CHECKING_ONLY = {  # names a type, imports nothing when it runs
    ("optim.groups", "nn"),
    ("autograd.host", "autograd.tensor"),
}

TORCH_ROOMS = (
    "backend.torch", "backend.torch_cards", "backend.torch_kernels", "backend.capture", "parity",
    "bench",
)  # fmt: skip

FILE_LIMIT, FUNCTION_LIMIT = 400, 60
CAP_EXCEPTIONS: dict[str, str] = {}  # "path" or "path:function" -> the reason


def source_files() -> list[Path]:
    return sorted(
        path
        for folder in ("nplm", "parity_tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    )


def module_name(path: Path) -> str:
    """`autograd.graph` for nplm/autograd/graph.py, `ops` for nplm/ops/__init__.py."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> list[str]:
    """Every module that a file imports anywhere, relative to nplm where it is nplm's own."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            if (PACKAGE.parent / Path(*node.module.split("."))).is_dir():
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def docstring_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


parsed = cache(ast.parse)


@cache
def code_lines(source: str) -> set[int]:
    """The numbers of the lines that hold code: no docstrings, no comments, no blank lines."""
    skipped = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    }  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(parsed(source))

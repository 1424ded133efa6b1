"""The rules of the house: who imports whom, how long things may be, what the README lists."""

import ast
import re
import subprocess
import sys
import textwrap

import house
import pytest
from house import PACKAGE, ROOT, code_lines, imports, module_name, source_files

pytestmark = pytest.mark.house


def room_of(module, rooms):
    """The longest name in `rooms` that `module` is or is inside of, or None."""
    fits = [room for room in rooms if module == room or module.startswith(room + ".")]
    return max(fits, key=len) if fits else None


def test_every_import_goes_in_an_allowed_direction():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        module = module_name(path)
        room = room_of(module, house.MAY_IMPORT)
        if module in ("", "autograd"):
            continue  # gathers the public names; is a docstring
        if room is None:
            wrong.append(f"{module}: in no room; add it to MAY_IMPORT")
            continue
        allowed = house.MAY_IMPORT[room].split()
        for name in imports(house.parsed(path.read_text())):
            if not name.startswith("nplm."):
                continue
            target = name.removeprefix("nplm.")
            if target == "__version__":
                continue
            exempt = any(module == m and room_of(target, [t]) for m, t in house.TYPE_CHECKING_ONLY)
            if room_of(target, [*allowed, module]) is None and not exempt:
                wrong.append(f"{module} imports {target}")
    assert not wrong, wrong


def test_torch_is_imported_only_in_its_own_rooms():
    wrong = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "torch" for name in imports(house.parsed(path.read_text())))
        and room_of(module_name(path), house.TORCH_ROOMS) is None
    ]
    assert not wrong, wrong


def test_graph_reads_alone_and_is_short():
    source = (PACKAGE / "autograd/graph.py").read_text()
    assert len(source.splitlines()) < 150
    assert [n for n in imports(house.parsed(source)) if n.startswith("nplm")] == ["nplm.errors"]


def test_kernel_modules_import_only_op():
    for path in (PACKAGE / "backend").glob("*_kernels.py"):
        own = [n for n in imports(house.parsed(path.read_text())) if n.startswith("nplm")]
        assert all(n.startswith("nplm.autograd.op") for n in own), (path.name, own)


def test_no_file_and_no_function_is_longer_than_its_cap():
    too_long = []
    for path in source_files():
        source, name = path.read_text(), str(path.relative_to(ROOT))
        if len(source.splitlines()) > house.FILE_LIMIT and name not in house.CAP_EXCEPTIONS:
            too_long.append(f"{name}: {len(source.splitlines())} lines")
        lines = code_lines(source)
        for node in ast.walk(house.parsed(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n = len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))
                where = f"{name}:{node.name}"
                if n > house.FUNCTION_LIMIT and where not in house.CAP_EXCEPTIONS:
                    too_long.append(f"{where}: {n} lines of code")
    assert not too_long, too_long


def test_every_cap_exception_is_still_needed():
    for where in house.CAP_EXCEPTIONS:
        assert (ROOT / where.split(":")[0]).exists(), f"{where} is gone: drop its exception"


def test_every_file_opens_with_a_short_docstring():
    wrong = []
    for path in source_files():
        docstring = ast.get_docstring(house.parsed(path.read_text()), clean=False)
        limit = 5 if path.is_relative_to(PACKAGE) else 12
        if docstring is None or len(docstring.strip().splitlines()) > limit:
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong, wrong


def test_the_reading_order_fits_an_evening():
    counts = {name: len(code_lines((PACKAGE / f"{name}.py").read_text())) for name in house.EVENING}
    assert sum(counts.values()) <= house.READING_LIMIT, counts


def test_the_readme_gives_the_same_reading_order():
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## Reading order")[1].split("\n## ")[0]
    assert re.findall(r"`nplm/([a-z_/]+)\.py`", section)[: len(house.READING_ORDER)] == (
        house.READING_ORDER
    )


def test_the_readme_tree_lists_every_file():
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("## The tree")[1].split("```")[1]
    listed, folders = set(), []
    for line in tree.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            listed.add("".join(folders) + name)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("the list of files comes from git, and this is not a checkout")
    there = {name for name in tracked.stdout.split() if (ROOT / name).exists()}
    assert listed == there, {"missing": there - listed, "gone": listed - there}


def test_no_module_has_the_name_of_something_its_package_exports():
    code = textwrap.dedent(
        """
        import importlib, pathlib, pkgutil, types, nplm
        names = ["nplm"] + [m.name for m in pkgutil.walk_packages(nplm.__path__, "nplm.")
                            if m.ispkg]
        for name in names:
            package = importlib.import_module(name)
            for module in pkgutil.iter_modules(package.__path__):
                if "torch" not in module.name and name != "nplm.parity":
                    importlib.import_module(f"{name}.{module.name}")
                value = getattr(package, module.name, None)
                if value is not None and not isinstance(value, types.ModuleType):
                    print(name, module.name)
        """
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == ""


def test_importing_nplm_loads_no_third_party_module_but_numpy():
    code = textwrap.dedent(
        """
        import sys, sysconfig
        before = set(sys.modules)
        import nplm, nplm.nn, nplm.optim, nplm.models
        site = sysconfig.get_paths()["purelib"]
        new = {m.split(".")[0] for m in set(sys.modules) - before
               if (getattr(sys.modules[m], "__file__", None) or "").startswith(site)}
        print(sorted(new - {"nplm"}))
        """
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['numpy']"


TRAIN_IN_MEMORY = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "safetensors", "tyro", "tqdm", "filelock",
                                  "threadpoolctl"}:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocked())
import nplm
from nplm.data import CharTokenizer, RandomWindows, SequentialWindows, default_corpus
from nplm.models import Decoder, DecoderConfig
from nplm.optim import AdamW
from nplm.train import evaluate, fit

text = default_corpus().text[:3000]
tokenizer = CharTokenizer.from_text(text)
tokens = tokenizer.encode(text)
model = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, context=16, n_layer=1, n_head=2,
                              n_embd=16))
windows = RandomWindows(tokens, 16, 4, nplm.Generator().manual_seed(1))
before = evaluate(model, SequentialWindows(tokens, 16, 8)).loss
for record in fit(model, AdamW(model.parameters(), lr=1e-2), windows, steps=30, clip_norm=1.0):
    pass
after = evaluate(model, SequentialWindows(tokens, 16, 8)).loss
assert after < before - 0.5, (before, after)
assert not {"torch", "safetensors", "tyro", "tqdm"} & set(sys.modules)
try:
    model.to("torch:cpu")
except nplm.errors.BackendError as error:
    print(error)
"""


def test_training_in_memory_works_with_numpy_alone():
    out = subprocess.run(
        [sys.executable, "-c", TRAIN_IN_MEMORY], capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    assert "needs PyTorch, which is not installed" in out.stdout

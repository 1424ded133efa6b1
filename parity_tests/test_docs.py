"""The pages of docs/ are held to the code: included lines, links, named tests, figures, numbers."""

import ast
import json
import re
import subprocess
import sys

import pytest
from house import ROOT

pytestmark = pytest.mark.cli

DOCS = ROOT / "docs"
FIGURES = DOCS / "figures"
PAGES = sorted(DOCS.glob("*.md"))
MEASURED = ["accumulation", "schedules", "early_stopping"]  # pages with a run, a figure, numbers
NUMBERS = json.loads((FIGURES / "strategies.json").read_text())
RUN_HEADING = "## In a real run\n"
LARGEST_FIGURE = 150_000  # bytes

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_measured = pytest.mark.parametrize("name", MEASURED)


def without_fences(text):
    """Markdown as a reader sees it: no code blocks, no code spans."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def links(page):
    """Where the links and images of a page lead, but for other sites."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text()))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def includes(page):
    """(file, its path as written, the name of what is shown or None) of every literalinclude."""
    found = re.findall(
        r"^```\{literalinclude\} (\S+)\n(?::pyobject: (\S+)\n)?```$", page.read_text(), re.M
    )
    assert len(found) == page.read_text().count("{literalinclude}"), "an option that is not read"
    return [(page.parent / target, target, name or None) for target, name in found]


def anchors(page):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def definitions(path):
    """Every function, class and method of a file by its qualified name."""
    names, waiting = set(), [("", ast.parse(path.read_text()))]
    while waiting:
        prefix, tree = waiting.pop()
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                waiting.append((f"{prefix}{node.name}.", node))
    return names


def run_section(name):
    """What a page says about its run: the text under the heading, without the figure."""
    page = (DOCS / f"{name}.md").read_text()
    assert page.count(RUN_HEADING) == 1
    section = page.split(RUN_HEADING)[1].split("\n## ")[0]
    return re.sub(r"!\[[^\]]*\]\([^)]*\)", "", section)


def numbers_in(text):
    """The numbers of a text without their signs (2.646, 2,880, 45 %, 8e-04); not those in words."""
    return set(re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?(?: %)?(?!\w)", text))


# ---- what the pages point at ---------------------------------------------------------------------
def test_the_pages_have_what_is_looked_for():
    assert sum(len(includes(page)) for page in PAGES) >= 9
    assert sum(len(links(page)) for page in PAGES) >= 20
    assert {f"{name}.md" for name in [*MEASURED, "listings", "index"]} <= {p.name for p in PAGES}


@each_page
def test_every_included_piece_exists_and_is_linked_before(page):
    text = page.read_text()
    for path, target, name in includes(page):
        assert path.is_file(), target
        if name is not None:
            assert name in definitions(path), f"{target} defines no {name}"
        shown = text.index(f"{{literalinclude}} {target}")
        assert f"]({target})" in text[:shown], f"on GitHub nothing leads to {target}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_link_and_image_leads_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"


@each_page
def test_every_test_that_is_named_exists(page):
    nodes = re.findall(r"\b(parity_tests/\w+\.py)(?:::(\w+))?", page.read_text())
    for file, function in nodes:
        assert (ROOT / file).is_file(), file
        assert not function or function in definitions(ROOT / file), f"{file}::{function}"


@pytest.mark.parametrize("name", [*MEASURED, "listings"])
def test_every_strategy_names_its_proof(name):
    text = (DOCS / f"{name}.md").read_text()
    assert re.findall(r"^pytest parity_tests/\w+\.py::test_\w+$", text, re.M)


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.M | re.S)
    listed = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    assert sorted(listed) == [page.stem for page in PAGES if page.stem != "index"]
    for name in listed:
        assert f"]({name}.md)" in index, f"on GitHub nothing leads to {name}.md"


# ---- figures and numbers -------------------------------------------------------------------------
def test_every_figure_is_shown_and_small():
    shown = {target for page in PAGES for target in links(page) if target.endswith(".svg")}
    assert shown == {f"figures/{path.name}" for path in FIGURES.glob("*.svg")}
    for path in FIGURES.glob("*.svg"):
        assert path.stat().st_size < LARGEST_FIGURE, path.name


@each_measured
def test_every_number_of_a_run_is_the_measured_one(name):
    measured, shown = numbers_in(" | ".join(NUMBERS[name].values())), numbers_in(run_section(name))
    assert len(measured) > 5
    assert shown <= measured, f"not in strategies.json: {shown - measured}"


@each_measured
def test_the_table_of_a_run_is_what_was_measured(name):
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", run_section(name), re.M)
    assert rows[0] == ("measured", "value")
    assert rows[1:] == list(NUMBERS[name].items())


def test_the_figures_and_numbers_can_be_made_again(tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the figures: pip install matplotlib")
    command = [sys.executable, "-m", "benchmarks.strategies", "--steps", "4", "--out", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in FIGURES.iterdir()}
    numbers = json.loads((tmp_path / "strategies.json").read_text())
    assert {k: list(v) for k, v in numbers.items()} == {k: list(v) for k, v in NUMBERS.items()}


def test_the_pages_become_html_without_a_warning(tmp_path):
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason=f"the pages are built with it: pip install {module}")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees",
               DOCS, tmp_path / "html"]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for page in PAGES:
        html = (tmp_path / "html" / f"{page.stem}.html").read_text()
        for path, _, name in includes(page):  # the code is there, word by word
            source = path.read_text().splitlines() if name is None else [name.split(".")[-1]]
            assert all(word in html for line in source[:1] for word in re.findall(r"\w+", line))
        assert "{literalinclude}" not in html

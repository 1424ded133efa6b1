"""The pages of docs/ are held to the code: source, links, named tests, figures and numbers."""

import ast
import json
import os
import re
import shutil
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
    """(path, name of what is shown or "") of every piece of source on a page."""
    return re.findall(r"^<!-- include: (\S+)(?: (\S+))? -->$", page.read_text(), re.M)


def run_include(folder, *arguments):
    """docs/include.py of a folder: its exit status, and what it said."""
    command = [sys.executable, folder / "docs" / "include.py", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


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
    return re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?(?: %)?(?!\w)", text)


def claims(section):
    """(text, keys) of every paragraph and list item of a run: its numbers are those of the keys."""
    prose = re.sub(r"^\|.*\n", "", section, flags=re.M)
    for block in re.split(r"\n\n+|\n(?=\* )", prose):
        keys = re.findall(r"<!-- numbers: (.*?) -->", block, re.S)
        named = [" ".join(key.split()) for text in keys for key in text.split(";")]
        yield re.sub(r"<!--.*?-->", "", block, flags=re.S), named


# ---- what the pages point at ---------------------------------------------------------------------
def test_the_pages_have_what_is_looked_for():
    assert sum(len(includes(page)) for page in PAGES) >= 9
    assert all(any(keys for _, keys in claims(run_section(name))) for name in MEASURED)
    assert sum(len(links(page)) for page in PAGES) >= 20
    assert {f"{name}.md" for name in [*MEASURED, "listings", "index"]} <= {p.name for p in PAGES}


def test_every_piece_of_source_on_the_pages_is_the_source():
    assert run_include(ROOT, "--check") == (0, "")


def test_a_piece_that_differs_is_named_and_written_anew(tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copy(DOCS / "include.py", tmp_path / "docs")
    (tmp_path / "a.py").write_text("class A:\n    @property\n    def f(self):\n        return 1\n")
    page = tmp_path / "docs" / "page.md"
    text = "<!-- include: a.py{} -->\n```py\n{}```\n<!-- end -->\n"
    page.write_text(text.format(" A.f", "def f(self): ...\n") + text.format("", ""))
    differ = (1, "page.md: a.py A.f is not its source\npage.md: a.py is not its source\n")
    assert run_include(tmp_path, "--check") == differ
    assert run_include(tmp_path)[0] == 0
    shown = text.format(" A.f", "@property\ndef f(self):\n    return 1\n")
    assert page.read_text() == shown + text.format("", (tmp_path / "a.py").read_text())
    assert run_include(tmp_path, "--check") == (0, "")
    for wrong in (text.format(" A.g", ""), "<!-- include: a.py -->\n", text.replace("end", "ende")):
        page.write_text(wrong)
        assert run_include(tmp_path)[0] == 1
        assert page.read_text() == wrong


@each_page
def test_a_link_to_the_file_stands_before_every_piece_of_source(page):
    text = page.read_text()
    for path, name in includes(page):
        before = text[: text.index(f"<!-- include: {path} {name}".rstrip())]
        assert f"]({os.path.relpath(ROOT / path, DOCS)})" in before, f"nothing leads to {path}"


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
def test_every_number_of_a_run_is_the_measured_one_under_its_name(name):
    table = NUMBERS[name]
    for text, keys in claims(run_section(name)):
        assert set(keys) <= set(table), text
        assert numbers_in(text) == [n for key in keys for n in numbers_in(table[key])], text


@each_measured
def test_the_table_of_a_run_is_what_was_measured(name):
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", run_section(name), re.M)
    assert rows[0] == ("measured", "value")
    assert rows[1:] == list(NUMBERS[name].items())


@pytest.mark.slow
def test_the_figures_and_numbers_can_be_made_again(tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the figures: pip install matplotlib")
    command = [sys.executable, "-m", "benchmarks.strategies", "--steps", "4", "--out", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    made = {path.name for path in tmp_path.iterdir()}
    assert made | {"benchmarks.svg"} == {path.name for path in FIGURES.iterdir()}
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
        assert html.count('<div class="highlight-py ') == len(includes(page))
        assert "include:" not in re.sub(r"<!--.*?-->", "", html, flags=re.S)

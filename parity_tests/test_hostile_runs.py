"""A run whose run.json or state.json somebody edited goes on, or is refused in one sentence."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from small_runs import begin, small_config, small_presets

from nplm import files
from nplm.cli import main
from nplm.train.checkpoint import latest_checkpoint

pytestmark = pytest.mark.fault

GONE = object()
VALUES = [None, True, -1, 0, 3, 10**30, 1.5, "x", "NaN", "\ud800", [], {}, [1], {"a": 1}, GONE]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that one update separates from its end."""
    folder = tmp_path_factory.mktemp("stopped")
    return begin(small_config(folder, keep=1), stop_at=29).folder.path


def places(value, path=()):
    """The way to every value inside nested lists and mappings."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        yield (*path, key)
        if isinstance(item, dict | list) and len(item) < 100:  # not the words of a generator
            yield from places(item, (*path, key))


def edited(document, path, value):
    at = document
    for key in path[:-1]:
        at = at[key]
    if value is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(document).encode()


def edit(run, name, draw):
    """Change one value of run.json, or of the newest state.json; its checkpoint is sealed again."""
    path = run / "run.json" if name == "run.json" else latest_checkpoint(run) / name
    document = json.loads(path.read_text())
    change = edited(document, draw(st.sampled_from(list(places(document)))),
                    draw(st.sampled_from(VALUES)))  # fmt: skip
    if name == "run.json":
        path.write_bytes(change)
        return
    content = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.name != files.MANIFEST}
    content[name] = change
    shutil.rmtree(path.parent)
    writers = {n: (lambda to, data=data: to.write_bytes(data)) for n, data in content.items()}
    files.write_directory(path.parent, writers)


@pytest.mark.parametrize("name", ["run.json", "state.json"])
@given(data=st.data())
@examples(80)
def test_an_edited_run_goes_on_or_is_refused_in_one_sentence(name, data, stopped, tmp_path_factory):
    run = tmp_path_factory.mktemp("edited") / "run"
    shutil.copytree(stopped, run)
    edit(run, name, data.draw)
    for words in (["check", str(run)], ["train", "--resume", str(run)]):
        out, err = io.StringIO(), io.StringIO()
        with small_presets(), redirect_stdout(out), redirect_stderr(err):
            code = main(words)
        err = err.getvalue()
        assert code in (0, 1, 3, 4), (words, code, err)
        assert len(err.splitlines()) == bool(code), err

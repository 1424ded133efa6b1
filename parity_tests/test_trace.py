"""Traces: what comes back from a folder, and what damage is refused."""

import json

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nplm.errors import CheckpointError, DataError, StorageError
from nplm.files import MANIFEST, sha256_of
from nplm.parity.trace import MICRO_PHASES, PHASES, Place, Trace

pytestmark = pytest.mark.step

DTYPES = ["bool", "uint8", "int64", "float16", "float32", "float64", "complex64", "complex128"]
places = st.builds(
    Place, st.integers(0, 3), st.integers(0, 3), st.sampled_from(PHASES), st.text(max_size=9)
)
values = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=3))
)
entries = st.lists(
    st.tuples(places, values, st.integers(1, 10**6), st.floats(0, 1e30)), max_size=12
)


def small_trace():
    trace = Trace({"engine": "nplm", "dtype": "float32"})
    for step in (1, 2):
        trace.add(Place(step, 1, "forward", "head"), np.arange(6, dtype=np.float32), 16, 0.5)
        trace.add(Place(step, 0, "lr", "lr.0"), 1e-3)
    return trace


@examples(60)
@given(entries, st.integers(1, 5))
def test_every_trace_comes_back_from_its_folder(tmp_path_factory, given, part_entries):
    trace = Trace({"note": "ä", "n": 3})
    for place, value, terms, scale in given:
        trace.add(place, value, terms, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nplm.parity.trace.PART_ENTRIES", part_entries)
        folder = trace.save(tmp_path_factory.mktemp("traces") / "deep" / "one")
    back = Trace.load(folder)
    assert back.meta == trace.meta
    assert [(e.place, e.terms, e.scale) for e in back] == [
        (e.place, e.terms, e.scale) for e in trace
    ]
    for a, b in zip(back, trace):
        assert a.value.dtype == b.value.dtype
        np.testing.assert_array_equal(a.value, b.value)


@given(st.lists(places, max_size=30))
def test_no_place_is_lost_and_causal_order_is_by_step_micro_batch_and_phase(given):
    trace = Trace()
    for i, place in enumerate(given):
        used = trace.add(place, i)
        assert trace.get(used).value == i
    assert len(trace) == len(given)
    causal = [e.place for e in trace.causal()]
    for a, b in zip(causal, causal[1:]):
        assert a.step <= b.step
        if a.step == b.step and a.micro and b.micro:
            assert a.micro <= b.micro
        if (a.step, a.micro) == (b.step, b.micro):
            assert PHASES.index(a.phase) <= PHASES.index(b.phase)
        if a.step == b.step and not a.micro:
            assert not b.micro  # what the whole step did comes after its micro-batches
    assert trace.steps() == sorted({place.step for place in given})
    trace.drop(1)
    assert 1 not in trace.steps()
    assert len(trace) == sum(place.step != 1 for place in given)


def test_an_entry_is_a_copy_and_a_place_that_comes_twice_gets_a_number():
    trace, array, place = Trace(), np.zeros((2, 3)).T, Place(1, 2, "forward", "fc")
    trace.add(place, array)
    array += 1
    assert trace.get(place).value.flags.c_contiguous
    assert not trace.get(place).value.any()
    names = [trace.add(place, array).name for _ in range(3)]
    assert names == ["fc#2", "fc#3", "fc#4"]
    assert str(place) == "step 1, micro-batch 2, forward of fc"
    assert str(Place(3, 0, "lr", "lr.0")) == "step 3, lr of lr.0"
    assert set(MICRO_PHASES) < set(PHASES)


@pytest.mark.parametrize("value", ["text", None, object()])
def test_what_is_not_a_number_is_refused_with_its_place(value):
    with pytest.raises(DataError, match="step 1, loss of total: expected numbers, got dtype"):
        Trace().add(Place(1, 0, "loss", "total"), value)
    with pytest.raises(DataError, match=r"expected a phase of start, .*, got 'lose'"):
        Trace().add(Place(1, 0, "lose", "total"), 1.0)


def test_a_folder_that_exists_and_meta_beyond_json_are_refused(tmp_path):
    small_trace().save(tmp_path / "t")
    with pytest.raises(StorageError, match="exists already"):
        small_trace().save(tmp_path / "t")
    for meta in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(DataError, match="meta cannot be written as JSON"):
            Trace(meta).save(tmp_path / "bad")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_every_truncation_of_every_file_is_refused(tmp_path):
    folder = small_trace().save(tmp_path / "t")
    for path in folder.iterdir():
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=str(folder)):
                Trace.load(folder)
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name):
            Trace.load(folder)
        path.write_bytes(whole)
    assert len(Trace.load(folder)) == 4
    with pytest.raises(CheckpointError):
        Trace.load(tmp_path / "nothing")


def sealed(folder, name, text):
    """Write a file and make the manifest agree, as somebody who edits a trace could."""
    (folder / name).write_text(text)
    manifest = json.loads((folder / MANIFEST).read_text())
    raw = text.encode()
    manifest["files"][name] = {"bytes": len(raw), "sha256": sha256_of(raw)}
    body = {key: manifest[key] for key in ("format_version", "files")}
    body["sha256"] = sha256_of(json.dumps(body, indent=2).encode())
    (folder / MANIFEST).write_text(json.dumps(body, indent=2) + "\n")


INDEX_FAULTS = {
    "newer nplm": {"format_version": 2},
    "not the index": {"format_version": 0},
    "not the index of": {"phases": ["start"]},
    "not the index of a": {"names": [3]},
    "says 7 values, found 4": {"entries": 7},
    "not a trace of 2 parts": {"parts": 2},
    "not a trace of 0 parts": {"parts": 0},
    "damaged: not the index of a trace": {"meta": []},
}


@pytest.mark.parametrize("message", INDEX_FAULTS)
def test_an_index_that_says_something_else_is_refused(tmp_path, message):
    folder = small_trace().save(tmp_path / "t")
    index = json.loads((folder / "trace.json").read_text())
    sealed(folder, "trace.json", json.dumps(index | INDEX_FAULTS[message]))
    with pytest.raises(CheckpointError, match=message):
        Trace.load(folder)


ROW_FAULTS = [
    (0, -1), (1, "1"), (2, len(PHASES)), (2, True), (3, 99), (4, "float64"), (4, "complex9"),
    (4, 5), (5, 0), (6, "x"), (6, None),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value"), ROW_FAULTS)
def test_a_row_that_does_not_fit_is_refused(tmp_path, column, value):
    folder = small_trace().save(tmp_path / "t")
    rows = json.loads((folder / "part-0001.json").read_text())
    rows[0][column] = value
    sealed(folder, "part-0001.json", json.dumps(rows))
    with pytest.raises(CheckpointError, match=r"part-0001\.json: damaged: row 0"):
        Trace.load(folder)
    for wrong in (rows[1:], [*rows, rows[1]], {}, [[]] * 4):
        sealed(folder, "part-0001.json", json.dumps(wrong))
        with pytest.raises(CheckpointError, match=r"part-0001\.json: damaged"):
            Trace.load(folder)

"""Files of tensors that someone made to do harm: only our own errors, soon and in little memory.

Every case of hypothesis ends within 2 seconds; bombs are read in a process with a small memory.
"""

import json
import math
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nplm import files
from nplm.errors import CheckpointError, NplmError

pytestmark = pytest.mark.cli

SOON = 2000  # milliseconds


def hostile(n):
    return settings(examples(n), deadline=SOON, suppress_health_check=[*HealthCheck])


def outcome(act, *args):
    """What a file turns into: a value, or None after one of our errors, all in one line."""
    try:
        return act(*args)
    except NplmError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) < 1500
        return None


# ---- files of tensors ----------------------------------------------------------------------------


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


W = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
TWICE = f'{{"w": {W}, "w": {W}}}'.encode()

REFUSED = {
    "no bytes": (b"", "0 bytes, expected at least 8"),
    "seven bytes": (b"1234567", "7 bytes, expected at least 8"),
    "a header of nothing": (safetensors_bytes(b""), "does not begin with {"),
    "a header beyond the end": (struct.pack("<Q", 2**63) + b"{}", f"a header of {2**63} bytes"),
    "a header of 200 MB": (struct.pack("<Q", 200 * 2**20) + b"{}", "a header of 209715200 bytes"),
    "not UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "can't decode byte 0xff"),
    "not JSON": (safetensors_bytes(b"{]"), "not valid JSON"),
    "brackets": (safetensors_bytes(b'{"w":' + b"[" * 100_000), "not valid JSON: nested too deeply"),
    "a list": (safetensors_bytes([1]), "does not begin with {"),
    "a name twice": (safetensors_bytes(TWICE, b"1234"), "the key 'w' stands there twice"),
    "an overlap": (
        safetensors_bytes({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456"),
        "tensor 'b' begins at byte 2, expected 4: a gap or an overlap",
    ),
    "a gap": (
        safetensors_bytes({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
        "tensor 'b' begins at byte 8, expected 4: a gap or an overlap",
    ),
    "bytes left over": (safetensors_bytes({"a": entry()}, bytes(5)), "5 bytes of data, expected 4"),
    "bytes missing": (safetensors_bytes({"a": entry()}, bytes(3)), "3 bytes of data, expected 4"),
    "a shape that wraps": (
        safetensors_bytes({"w": entry(shape=[7, 7905747460161236407])}, bytes(4)),  # 3 * 2**64 + 1
        "tensor 'w' has 4 bytes, which is not F32 of [7, 7905747460161236407]",
    ),
    "a huge shape of nothing": (
        safetensors_bytes({"w": entry(shape=[0, 999999999999], offsets=(0, 0))}),
        "tensor 'w' is empty, but has an impossible shape: [0, 999999999999]",
    ),
    "65 dimensions": (
        safetensors_bytes({"w": entry(shape=[1] * 65)}, bytes(4)),
        "tensor 'w' has an impossible shape: [1, 1, 1",
    ),
    "a negative size": (
        safetensors_bytes({"w": entry(shape=[-1])}, bytes(4)), "has an impossible shape: [-1]",
    ),
    "a size that is true": (
        safetensors_bytes({"w": entry(shape=[True])}, bytes(4)), "has an impossible shape: [True]",
    ),
    "offsets the wrong way": (
        safetensors_bytes({"w": entry(offsets=(4, 0))}, bytes(4)),
        "tensor 'w' has impossible data_offsets: [4, 0]",
    ),
    "a dtype of 8 bits": (
        safetensors_bytes({"w": entry("F8_E4M3", [4])}, bytes(4)),
        "tensor 'w' has dtype 'F8_E4M3', expected one of F64, F32",
    ),
    "a dtype that is a list": (
        safetensors_bytes({"w": entry(["F32"])}, bytes(4)),
        "tensor 'w' has dtype ['F32'], expected one of F64, F32",
    ),
    "a BOOL of 2": (
        safetensors_bytes({"w": entry("BOOL", [4])}, b"\0\1\2\1"),
        "tensor 'w' is BOOL and holds other than 0 and 1",
    ),
    "another key": (
        safetensors_bytes({"w": entry(code="import os")}, bytes(4)),
        "tensor 'w' needs dtype, shape and data_offsets, and nothing else",
    ),
    "metadata of numbers": (safetensors_bytes({"__metadata__": {"a": 1}}), "metadata are not text"),
    "a name of a path": (
        safetensors_bytes({"../../x": entry()}, bytes(4)),
        "tensor '../../x': its name is a path that leads elsewhere",
    ),
    "an absolute name": (safetensors_bytes({"/etc/x": entry()}, bytes(4)), "a path that leads"),
    "a name with NUL": (
        safetensors_bytes({"a\0b": entry()}, bytes(4)),
        r"tensor 'a\x00b': its name holds characters that cannot be printed",
    ),
    "a name with colours": (safetensors_bytes({"\x1b[31m": entry()}, bytes(4)), r"'\x1b[31m'"),
    "a name from right to left": (safetensors_bytes({"\u202ex": entry()}, bytes(4)), r"'\u202ex'"),
    "a name of a megabyte": (
        safetensors_bytes({"n" * 2**20: entry()}, bytes(4)),
        f"tensor '{'n' * 60}'...: its name has 1048576 characters, expected at most 1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_of_tensors_that_was_made_wrong_is_refused_with_file_and_tensor(tmp_path, case):
    data, sentence = REFUSED[case]
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    for read, args in ((files.load_tensors, [path]), (files.parse_tensors, [data, path])):
        with pytest.raises(CheckpointError) as caught:
            read(*args)
        assert str(caught.value).startswith(f"{path}: ")
        assert sentence in str(caught.value)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_file_whose_header_is_wrong_is_not_read_further(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tensors, "read_bytes", pytest.fail)
    for data, _ in REFUSED.values():
        (tmp_path / "w").write_bytes(data)
        if b"BOOL" not in data:  # that one shows in its body only
            assert outcome(files.load_tensors, tmp_path / "w") is None


@pytest.mark.parametrize("name", ["n" * 1001, "a\nb", "\u202e", "../x", "a/../b", "\\x"])
def test_a_name_that_would_not_load_is_not_saved(tmp_path, name):
    with pytest.raises(ValueError, match=r"^save_tensors: tensor .*: its name "):
        files.save_tensors(tmp_path / "t", {name: np.zeros(1)})


NUMBERS = st.integers(-1, 12) | st.sampled_from([2**31, 2**62, 2**63, 2**64, -(2**70), True, 0.5])
HEADER_ENTRIES = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "BF16", "F4", "I64", "BOOL", "C64", "U8", "F16", "", 3, None]),
    "shape": st.lists(NUMBERS, max_size=3) | st.lists(st.integers(0, 3), max_size=3) | st.none(),
    "data_offsets": st.lists(NUMBERS, max_size=3) | st.just("01"),
}) | st.none() | st.text(max_size=3)  # fmt: skip
NAMES = st.text(max_size=4) | st.sampled_from(["__metadata__", "../x", "a.b", "\u202e", "\0", "/"])


@st.composite
def nearly_sound(draw):
    """A header whose tensors follow each other, but for what is drawn on top."""
    header, place = {}, 0
    for name in draw(st.lists(NAMES, max_size=3, unique=True)):
        dtype, size = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("BOOL", 1), ("F64", 8)]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        end = place + math.prod(shape) * size
        header[name] = entry(dtype, shape, (place, end))
        place = end
    if header and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(header)))
        header[name] = draw(HEADER_ENTRIES)
    extra = draw(st.sampled_from([0, 0, 0, 1, -1]))
    return header, draw(st.binary(min_size=max(place + extra, 0), max_size=max(place + extra, 0)))


HEADERS = st.tuples(st.dictionaries(NAMES, HEADER_ENTRIES, max_size=2), st.binary(max_size=20))


@hostile(1500)
@given(HEADERS | nearly_sound())
def test_a_made_up_header_loads_as_the_library_loads_it_or_is_our_error(case):
    data = safetensors_bytes(*case)
    tensors = outcome(files.parse_tensors, data, "w")
    if tensors is None:
        return
    library = files.require_safetensors()
    views = dict(library.deserialize(data))  # what we accept, it accepts
    assert views.keys() == tensors.keys()
    for name, array in tensors.items():
        assert list(array.shape) == views[name]["shape"]
        if views[name]["dtype"] != "BF16":
            assert array.tobytes() == bytes(views[name]["data"])


@hostile(700)
@given(st.binary(max_size=60), st.integers(0, 70) | st.sampled_from([2**63, 2**64 - 1, 10**9]))
@example(b'{"w":' * 3, 15)
def test_any_bytes_are_a_file_of_tensors_or_our_error(data, length):
    outcome(files.parse_tensors, data, "w")
    outcome(files.parse_tensors, struct.pack("<Q", length) + data, "w")


# ---- bombs ---------------------------------------------------------------------------------------


READ = """
import resource, sys, time
from nplm import files
from nplm.errors import NplmError
read, path = getattr(files, sys.argv[1]), sys.argv[2]
base = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + 256 * 2**20,) * 2)
start = time.perf_counter()
try:
    read(path)
    print("loaded")
except NplmError as error:
    print("refused", str(error)[-100:])
assert time.perf_counter() - start < 2
"""


def npz_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(50_000_000))


def sparse(path):
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2) + b"{}")
        file.truncate(2**40)


def sparse_that_says_so(path):
    with open(path, "wb") as file:
        file.write(safetensors_bytes({"w": entry("U8", [2**40], (0, 2**40))}))
        file.truncate(file.tell() + 2**40)


def many_values(path):
    path.write_bytes(b"[" + b"[]," * 5_000_000 + b"0]")


def many_tensors(path):
    text = b"{" + b",".join(b'"%d":0' % i for i in range(1_500_000)) + b"}"
    path.write_bytes(safetensors_bytes(text))


def wide_text(path):
    path.write_text('["' + "a" * 15_000_000 + "\U0001f98a" + '"]', encoding="utf-8")


def huge_json(path):
    with open(path, "wb") as file:
        file.truncate(10**10)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory in use")
@pytest.mark.parametrize("bomb", [
    npz_bomb, sparse, sparse_that_says_so, many_values, many_tensors, wide_text, huge_json,
])  # fmt: skip
def test_a_bomb_is_refused_soon_and_in_little_memory(tmp_path, bomb):
    bomb(tmp_path / "bomb")
    for read in ("load_tensors", "read_json"):
        out = subprocess.run(
            [sys.executable, "-c", READ, read, str(tmp_path / "bomb")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        loads = bomb is wide_text and read == "read_json"
        assert out.stdout.split()[0] == ("loaded" if loads else "refused")

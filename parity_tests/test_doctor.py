"""`nplm doctor`: what it finds, and what it says when a package, a disk or a number is bad."""

import errno
import json
import sys

import pytest

from nplm import backend
from nplm.cli import doctor, main
from nplm.files import system
from nplm.models import Decoder
from nplm.random import default_generator

pytestmark = pytest.mark.cli


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def numpy_alone(monkeypatch):
    """Devices are NumPy's only: what is not about torch is faster so."""
    monkeypatch.setattr(backend, "devices", lambda: {"cpu": "NumPy"})


def run(capsys, *words):
    """(exit code, standard output, standard error) of `nplm doctor WORDS`."""
    try:
        code = main(["doctor", *map(str, words)])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == (code != 0), err
    return code, out, err


def block(monkeypatch, package):
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)  # `import` raises ModuleNotFoundError
    if package == "torch":
        monkeypatch.delitem(sys.modules, "nplm.backend.torch", raising=False)


def test_doctor_says_what_there_is_and_that_training_can_work(capsys, here):
    code, out, _ = run(capsys)
    assert code == 0
    for part in ("python     3.", "packages   numpy 2.", "safetensors", "cpu: NumPy 2.",
                 "usable of", "blas       ", "free in .", "write: passed", "gradient: passed",
                 "training   can work here"):  # fmt: skip
        assert part in out, part
    assert not list(here.iterdir())


def test_doctor_compares_gradients_with_torchs_kernels(capsys):
    pytest.importorskip("torch", reason="the second namespace is PyTorch: pip install torch")
    out = run(capsys)[1]
    assert "torch:cpu: PyTorch 2." in out
    assert "torch:cpu: passed" in out
    assert ("cuda: none that this torch sees" in out) != ("cuda:0: " in out)


def test_the_same_report_comes_as_json(capsys, numpy_alone):
    code, out, _ = run(capsys, "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {"python", "platform", "nplm", "packages", "missing", "devices", "cores",
                          "blas", "disk", "tests", "problems", "cards", "kernels",
                          "tf32"}  # fmt: skip
    assert (found["cards"], found["kernels"], found["tf32"]) == ({}, {}, None)  # of torch alone
    assert found["problems"] == []
    assert found["tests"] == {"write": "passed", "gradient": "passed"}
    assert found["disk"]["free_bytes"] > 0
    assert found["blas"][0]["num_threads"] >= 1


@pytest.mark.parametrize("package", doctor.OPTIONAL)
def test_a_missing_optional_package_is_named_and_no_failure(capsys, monkeypatch, package):
    block(monkeypatch, package)
    if package != "torch":
        monkeypatch.setattr(backend, "devices", lambda: {"cpu": "NumPy"})
    code, out, _ = run(capsys)
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith(f"missing    {package} "))
    assert "(optional: it " in line
    assert line.endswith(f"pip install {package}")
    assert ("blas " in out) == (package != "threadpoolctl")


@pytest.mark.parametrize("package", doctor.NEEDED)
def test_a_missing_needed_package_is_a_failure_with_its_command(
    capsys, monkeypatch, numpy_alone, package
):
    block(monkeypatch, package)
    code, out, err = run(capsys)
    assert code == 1
    assert f"missing    {package} (needed: it " in out
    assert "training   cannot work here" in out
    assert f"run `pip install {package}`" in err


def test_all_needed_packages_that_are_missing_make_one_command(capsys, monkeypatch, numpy_alone):
    for package in doctor.NEEDED:
        block(monkeypatch, package)
    code, out, err = run(capsys, "--json")
    assert (code, "`pip install safetensors tyro filelock`" in err) == (1, True)
    assert len(json.loads(out)["problems"]) == 1


def test_a_torch_that_does_not_load_is_said_in_one_sentence(capsys, monkeypatch):
    def broken(device):
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(backend, "namespace_for", broken)
    code, out, err = run(capsys)
    assert (code, "PyTorch does not load: libtorch_cpu.so" in err) == (1, True)
    assert "cpu: NumPy" in out


def test_a_read_only_folder_is_a_failure_that_names_it(capsys, monkeypatch, numpy_alone, here):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(system, "mkdir", refuse)
    code, out, err = run(capsys)
    assert (code, "Read-only file system" in err) == (1, True)
    assert "test       write: .nplm-doctor: could not be written" in out


@pytest.mark.parametrize(("call", "k"), [("fsync", 2), ("write", 2), ("open", 2), ("rename", 1)])
def test_every_step_of_the_write_test_can_fail_and_leaves_nothing(
    capsys, monkeypatch, numpy_alone, here, call, k
):
    real, calls = getattr(system, call), []

    def fails_once(*arguments, **named):
        place = str(arguments[0])
        if call not in ("rename", "open") or "probe" in place or ".tmp-" in place:
            calls.append(place)
            if len(calls) == k:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **named)

    monkeypatch.setattr(system, call, fails_once)
    code, _, err = run(capsys)
    assert (code, "No space left on device" in err) == (1, True), err
    assert not list(here.iterdir())


def test_other_bytes_than_were_written_are_a_failure(capsys, monkeypatch, numpy_alone, here):
    monkeypatch.setattr(doctor.files, "load_verified", lambda path: {"probe": b"zeros"})
    code, _, err = run(capsys)
    assert (code, "other bytes were read than written" in err) == (1, True)
    assert not list(here.iterdir())


def test_a_folder_that_train_would_make_is_tested_where_it_would_be(capsys, numpy_alone, here):
    code, out, _ = run(capsys, "--out", "a/b")
    assert code == 0
    assert "free in . (a/b does not exist yet)" in out
    assert not list(here.iterdir())


def test_a_file_in_the_place_of_a_folder_is_a_failure(capsys, numpy_alone, here):
    (here / "notes.txt").write_text("mine")
    for out in ("notes.txt", "notes.txt/runs"):
        code, _, err = run(capsys, "--out", out)
        assert (code, "notes.txt: is no folder" in err) == (1, True)
    assert (here / "notes.txt").read_text() == "mine"


def test_a_wrong_gradient_is_a_failure(capsys, monkeypatch, numpy_alone):
    real = doctor._loss_and_gradients

    def wrong(model, ids):
        loss, gradients = real(model, ids)
        gradients[3] = gradients[3] * 1.0001
        return loss, gradients

    monkeypatch.setattr(doctor, "_loss_and_gradients", wrong)
    code, _, err = run(capsys)
    assert (code, "self-test gradient: " in err, ": the gradient says" in err) == (1, True, True)


@pytest.mark.parametrize("kind", ["other loss", "other gradients", "no kernel"])
def test_a_device_that_computes_something_else_is_a_failure(capsys, monkeypatch, kind):
    monkeypatch.setattr(backend, "devices", lambda: {"cpu": "NumPy", "cuda:0": "a GPU"})
    real_to, real_gradients, moved = Decoder.to, doctor._loss_and_gradients, []

    def to(model, device, dtype=None):
        moved.append(device == "cuda:0")
        if moved[-1] and kind == "no kernel":
            raise RuntimeError("CUDA error: no kernel image is available\nlong advice")
        return model if moved[-1] else real_to(model, device, dtype)

    def gradients(model, ids):
        loss, found = real_gradients(model, ids)
        if moved[-1] and kind == "other loss":
            loss *= 1.001
        if moved[-1] and kind == "other gradients":
            found[-1] = found[-1] * 1.001
        return loss, found

    monkeypatch.setattr(Decoder, "to", to)
    monkeypatch.setattr(doctor, "_loss_and_gradients", gradients)
    code, out, err = run(capsys)
    says = "CUDA error: no kernel" if kind == "no kernel" else "its loss or gradients are not NumPy"
    assert (code, f"self-test cuda:0: {says}" in err) == (1, True)
    assert "gradient: passed" in out


# ---- cards and kernels ---------------------------------------------------------------------------
H200 = {
    "memory_bytes": 150_100_000_000, "compute_capability": "9.0", "cuda": "12.8",
    "bfloat16": True, "flash_attention": True, "cudnn_attention": False,
}  # fmt: skip


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the facts are PyTorch's: pip install torch")


def with_a_card(monkeypatch, card):
    """There is a card, whose gradients are not tried out."""
    from nplm.backend import torch_cards

    devices = {"cpu": "NumPy", "torch:cpu": "PyTorch", "cuda:0": "NVIDIA H200"}
    monkeypatch.setattr(backend, "devices", lambda: devices)
    monkeypatch.setattr(torch_cards, "card", card)
    monkeypatch.setattr(doctor, "_self_tests", lambda devices: {})
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "570.86.15")


def test_a_card_is_shown_with_its_memory_its_driver_and_what_it_can_do(capsys, monkeypatch, torch):
    from nplm.backend.torch_kernels import report

    asked = []
    with_a_card(monkeypatch, lambda device: asked.append(device) or H200)
    monkeypatch.setattr(report, "chosen", lambda device, dtype: [("op", f"{device} {dtype}", "so")])
    out = run(capsys)[1]
    assert asked == ["cuda:0"]
    for line in (
        "device     cuda:0: NVIDIA H200",
        "card       cuda:0: 150.1 GB, compute capability 9.0, driver 570.86.15, CUDA 12.8",
        "card       cuda:0: bfloat16 yes, flash attention yes, cuDNN attention no",
        "kernel     cuda:0 op in float32: cuda:0 float32 (so)",
        "kernel     cuda:0 op in bfloat16: cuda:0 bfloat16 (so)",
    ):
        assert line in out.splitlines(), line
    assert "none that this torch sees" not in out
    found = json.loads(run(capsys, "--json")[1])
    assert found["cards"] == {"cuda:0": {"driver": "570.86.15", **H200}}


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: no\nadvice"), AssertionError()])
def test_a_card_that_cannot_be_asked_is_shown_with_the_reason(capsys, monkeypatch, torch, error):
    def card(device):
        raise error

    with_a_card(monkeypatch, card)
    code, out, _ = run(capsys)
    reason = "CUDA error: no" if error.args else "AssertionError"
    assert f"card       cuda:0: cannot be asked: {reason}" in out.splitlines()
    assert code == 0  # whether it trains is for its self-test to say


def test_a_card_is_asked_by_torchs_own_rules(monkeypatch, torch):
    """torch is asked about attention with tensors on that card, of the kind that training has."""
    from types import SimpleNamespace

    from nplm.backend import torch_cards

    asked, zeros = [], torch.zeros
    properties = SimpleNamespace(major=8, minor=6, total_memory=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {"cuda:1": properties}.get)
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: (
        asked.append((size, dtype, device)) or zeros(*size, dtype=dtype)))  # fmt: skip
    for name, answer in (("flash", True), ("cudnn", False)):
        monkeypatch.setattr(
            torch.backends.cuda, f"can_use_{name}_attention",
            lambda params, answer=answer: answer and params.is_causal and params.dropout == 0,
        )  # fmt: skip
    found = torch_cards.card("cuda:1")
    assert asked == [((1, 1, 64, 64), torch.bfloat16, "cuda:1")]
    assert found == {
        "memory_bytes": 5, "compute_capability": "8.6", "cuda": torch.version.cuda,
        "bfloat16": True, "flash_attention": True, "cudnn_attention": False,
    }  # fmt: skip
    properties.major = 7
    assert not torch_cards.card("cuda:1")["bfloat16"]


def test_kernels_are_named_for_torch_on_the_cpu_once_for_equal_choices(capsys, torch):
    from nplm.backend.torch_kernels.report import chosen

    found = json.loads(run(capsys, "--json")[1])["kernels"]
    assert set(found) >= {"torch:cpu"}
    names = [op for op, _, _ in chosen("torch:cpu", "float32")]
    for dtype in ("float32", "bfloat16"):
        assert [c["op"] for c in found["torch:cpu"] if c["dtype"] == dtype] == names
    lines = [line for line in run(capsys)[1].splitlines() if line.startswith("kernel ")]
    assert len(lines) < 2 * len(names)
    assert [line for line in lines if line.startswith("kernel     torch:cpu attention: ")]


def test_tf32_is_shown_as_it_is(capsys, torch):
    assert "tf32       off" in run(capsys)[1].splitlines()
    torch.set_float32_matmul_precision("high")
    try:
        assert "tf32       on: float32 products may" in run(capsys)[1]
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("text", "version"), [
    ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\n", "570.86.15"),
    ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  Release", "565.57.01"),
    ("something else", "unknown"), (None, "unknown"),
])  # fmt: skip
def test_the_driver_is_the_kernel_modules(here, text, version):
    if text is not None:
        (here / "proc/driver/nvidia").mkdir(parents=True)
        (here / "proc/driver/nvidia/version").write_text(text)
    assert doctor.nvidia_driver(here) == version


def test_the_self_test_leaves_the_random_stream_alone(capsys, numpy_alone):
    before = default_generator.get_state()
    run(capsys)
    assert default_generator.get_state() == before


def test_unknown_flags_get_the_nearest_name_all_at_once(capsys):
    for words, says in (
        (["--jsn", "--uot"], ("did you mean '--json'?", "did you mean '--out'?")),
        (["--out"], ("--out: expected one argument",)), (["runs"], ("unknown argument 'runs'",)),
        (["--json=3"], ("--json: ignored explicit argument '3'",)),
    ):  # fmt: skip
        code, out, err = run(capsys, *words)
        assert (code, out) == (2, "")
        assert all(part in err for part in says), err


@pytest.mark.parametrize(("content", "cores"), [
    ({"cpu.max": "150000 100000\n"}, 1.5), ({"cpu.max": "max 100000\n"}, 64), ({}, 64),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ({"a/cpu.max": "300000 100000\n"}, 3), ({"a/b/cpu.max": "400000 100000\n"}, 4),
    ({"cpu.max": "200000 0\n"}, 64), ({"cpu.max": "\n"}, 64),
])  # fmt: skip
def test_the_usable_cores_are_bounded_by_the_quota(monkeypatch, here, content, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in {"../../proc/self/cgroup": "1:cpu:/x\n0::/a/b\n", **content}.items():
        path = here / "sys/fs/cgroup" / name
        if name.startswith(".."):
            path = here / "proc/self/cgroup"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert doctor.usable_cores(here) == cores

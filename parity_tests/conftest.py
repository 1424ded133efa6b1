"""What every test shares: one BLAS thread, hypothesis profiles, a fresh random stream."""

import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path

# Before NumPy loads its BLAS: more threads would change the order of sums from run to run.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Runs sync what they write before it counts: in memory that takes no time.
if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

# A shell ignores Ctrl-C for what it starts in the background, and so would every run of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

for _name, _examples in {"default": 25, "all": 100}.items():  # see examples.py
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,  # a timing is never a test
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        derandomize=bool(os.environ.get("CI")),
    )
settings.load_profile("default")

try:
    import torch
except ModuleNotFoundError:
    torch = None
else:
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads what was asked for
def pytest_cmdline_main(config):
    """A process for every core where pytest-xdist is installed; -n 0 and -s stay in this one.

    Files and tests by name do too: they take less time than the processes take to start.
    """
    chosen = getattr(config.option, "numprocesses", 0)  # None: nobody said; 0: there is no xdist
    is_worker = hasattr(config, "workerinput")
    whole = all(Path(name).is_dir() for name in config.args)
    if chosen is None and whole and not is_worker and config.option.capture != "no":
        config.option.numprocesses = "auto"  # with --pdb that is this one
        # Neighbours stay together, and with them what the tests of a module share.
        config.option.dist = "worksteal"


@pytest.fixture(autouse=True)
def fresh_defaults():
    """Every test starts from nplm's same stream; torch's, and the default dtype, are put back."""
    import nplm

    nplm.manual_seed(0)
    before = nplm.get_default_dtype()
    with torch.random.fork_rng(devices=[]) if torch else nullcontext():
        yield
    nplm.set_default_dtype(before)


DEVICES = ["cpu", "torch:cpu"]


@pytest.fixture(params=DEVICES)
def device(request):
    """Both namespaces: NumPy, and torch on the CPU."""
    if request.param != "cpu":
        pytest.importorskip("torch", reason="the second namespace is PyTorch: pip install torch")
    return request.param

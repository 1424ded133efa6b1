"""What every test shares: one BLAS thread, hypothesis profiles, a fresh random stream."""

import os
import signal
from contextlib import nullcontext

# Before NumPy loads its BLAS: more threads would change the order of sums from run to run.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# A shell ignores Ctrl-C for what it starts in the background, and so would every run of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "default",
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

"""Where a measurement was made: processor, Python, packages, the BLAS; a process's peak memory."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nplm.train import processes
from nplm.train.run import blas

# Variables that choose a library's kernels: a BLAS held to older instructions is half as fast.
PINNING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2", "MKL_", "ATEN_", "NPY_", "ONEDNN_", "DNNL_")


def facts() -> dict[str, Any]:
    """Processor, cores, versions and the variables that choose kernels, in JSON's types."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else
        os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(PINNING)},
    }  # fmt: skip


def cpu_model() -> str:
    """The processor's name, as far as the system tells; with its instruction sets where listed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = set(found.get("flags", "").split())
    best = next((name for name in ("avx512f", "avx2") if name in flags), "")
    family = f", family {found['cpu family']}" if "cpu family" in found else ""
    return found.get("model name", platform.machine()) + family + (f", {best}" if best else "")


def numpy_blas() -> str:
    """NumPy's BLAS with its version and threads; "unknown" without threadpoolctl."""
    pools = [p for p in blas() or [] if p["internal_api"] != "mkl"]  # MKL would be torch's
    return ", ".join(f"{p['internal_api']} {p['version']} ({p['architecture']})"
                     for p in pools) or "unknown"  # fmt: skip


def peak_bytes() -> int:
    """The most resident memory that this process ever had, and what its workers have besides.

    Linux counts it by process image (VmHWM); `ru_maxrss` would give a child its parent's peak.
    """
    return (_status("VmHWM") or _maxrss()) + _workers_bytes()


def resident_bytes() -> int:
    """The resident memory of this process and its workers now; the peak where no system tells."""
    return (_status("VmRSS") or _maxrss()) + _workers_bytes()


def _workers_bytes() -> int:
    """What the workers of this process (train/processes.py) share with nobody."""
    total = 0
    for pid in processes.pids():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(x.split()[1]) * 1024 for x in lines if x.startswith("Private_"))
    return total


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(name + ":")), 0)


def _maxrss() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

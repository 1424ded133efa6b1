"""`nplm doctor`: what this machine has, whether training can work here, and what to install.

It runs without any package but NumPy, so its two flags are read by argparse; no network.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nplm import backend, files
from nplm.autograd.factory import tensor
from nplm.errors import BackendError, ConfigError, NplmError, unknown
from nplm.files import system
from nplm.models.config import DecoderConfig
from nplm.models.decoder import Decoder
from nplm.nn.functional import cross_entropy
from nplm.parity.tolerances import FINITE_DIFFERENCES, FORMULA_64, Tolerance
from nplm.random import Generator, default_generator
from nplm.train import report
from nplm.train.run import blas

NEEDED = {  # package -> what `nplm train` does with it
    "safetensors": "writes checkpoints",
    "tyro": "reads the command line",
    "filelock": "keeps two processes out of one run",
}
OPTIONAL = {
    "tqdm": "shows a progress bar",
    "threadpoolctl": "sets and shows the threads of the BLAS",
    "torch": "gives the devices torch:cpu and cuda",
}
BLAS = ("internal_api", "version", "num_threads")  # what is shown of each library
MODEL = DecoderConfig(vocab_size=11, context=4, n_layer=1, n_head=2, n_embd=8)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(arguments: list[str]) -> int:
    """Print what there is; an NplmError says why training cannot work."""
    parser = _Parser(
        prog="nplm doctor", allow_abbrev=False, description="Say whether training can work here."
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder that runs would go to")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    config, extra = parser.parse_known_args(arguments)
    if extra:
        known = ["--out", "--json", "--help"]
        raise ConfigError("; ".join(unknown("argument", word, known) for word in extra))
    found, problems = examine(config.out)
    if config.json:
        print(json.dumps({**found, "problems": problems}, indent=2))
    else:
        print("\n".join(_lines(found)))
        print("training   cannot work here" if problems else "training   can work here")
    if problems:
        raise NplmError("; ".join(problems))
    return 0


def examine(out: Path) -> tuple[dict[str, Any], list[str]]:
    """What there is, in JSON's types, and what keeps training from working."""
    problems: list[str] = []
    try:
        devices = backend.devices()
    except (BackendError, RuntimeError) as error:
        devices = {"cpu": f"NumPy {np.__version__}"}
        problems.append(str(error))
    versions = {name: _version(name) for name in ("numpy", *NEEDED, *OPTIONAL)}
    missing = [name for name, version in versions.items() if version is None]
    lacking = [name for name in missing if name in NEEDED]
    if lacking:
        uses = ", ".join(f"{name} (it {NEEDED[name]})" for name in lacking)
        problems.append(f"not installed: {uses}: run `pip install {' '.join(lacking)}`")
    disk, trouble = _disk(out)
    problems += [trouble] if trouble else []
    tests = {"write": trouble or "passed"}
    for name, test in _self_tests(devices).items():
        tests[name] = test or "passed"
        problems += [f"self-test {name}: {test}"] if test else []
    pools, torchs = blas(), _torch_facts(devices)
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "nplm": _version("nplm", "numpy-lm"),
        "packages": versions,
        "missing": {name: f"pip install {name}" for name in missing},
        "devices": devices,
        **torchs,
        "cores": {"machine": os.cpu_count(), "usable": usable_cores()},
        "blas": None if pools is None else [{k: p[k] for k in BLAS} for p in pools],
        "disk": disk,
        "tests": tests,
    }
    return found, problems


def _version(package: str, distribution: str | None = None) -> str | None:
    """The version of a package that can be imported, or None."""
    try:
        if package == "torch":
            backend.namespace_for("torch:cpu")
        else:
            import_module(package)
    except (NplmError, ImportError, OSError):
        return None
    try:
        return metadata.version(distribution or package)
    except metadata.PackageNotFoundError:  # run from a folder that is not installed
        return "unknown"


def _torch_facts(devices: dict[str, str]) -> dict[str, Any]:
    """The cards, the kernels that torch's devices get, and whether TF32 is on; None without torch.

    A card that cannot be asked has the reason in place of its facts.
    """
    cards: dict[str, Any] = {}
    kernels: dict[str, list[Any]] = {}
    others = [name for name in devices if name != "cpu"]
    if not others:
        return {"cards": cards, "kernels": kernels, "tf32": None}
    from nplm.backend import torch_cards
    from nplm.backend.torch_kernels.report import chosen

    for name in others:
        try:
            if name != "torch:cpu":
                cards[name] = {"driver": nvidia_driver(), **torch_cards.card(name)}
            kernels[name] = [
                {"dtype": dtype, "op": op, "kernel": kernel, "why": why}
                for dtype in ("float32", "bfloat16")
                for op, kernel, why in chosen(name, dtype)
            ]
        except (AssertionError, RuntimeError) as error:
            cards[name] = {"problem": str(error).partition("\n")[0] or type(error).__name__}
    return {"cards": cards, "kernels": kernels, "tf32": torch_cards.tf32()}


def usable_cores(root: Path = Path("/")) -> float:
    """How many cores this process may keep busy: its affinity, and the quota of its cgroup."""
    if hasattr(os, "sched_getaffinity"):
        cores: float = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    group = root / "sys/fs/cgroup"
    own = [line[3:].strip("/") for line in _words(root / "proc/self/cgroup", "\n")
           if line.startswith("0::")]  # fmt: skip
    for path in ("", *own, *(str(p) for name in own for p in Path(name).parents)):
        cores = min(cores, _quota(*_words(group / path / "cpu.max")))
    old = group / "cpu"  # cgroups of version 1
    return min(cores, _quota(*_words(old / "cpu.cfs_quota_us"), *_words(old / "cpu.cfs_period_us")))


def nvidia_driver(root: Path = Path("/")) -> str:
    """The version of the kernel's NVIDIA module, as "570.86.15", or "unknown"."""
    words = _words(root / "proc/driver/nvidia/version")
    return next((word for word in words if re.fullmatch(r"\d+(\.\d+)+", word)), "unknown")


def _words(path: Path, separator: str | None = None) -> list[str]:
    """The words of a small file of the system; none if it is not there."""
    try:
        return files.read_bytes(path).decode("utf-8", "replace").split(separator)
    except NplmError:
        return []


def _quota(quota: str = "max", period: str = "", *_: str) -> float:
    """ "200000 100000": 200 ms of every 100 ms, so two cores."""
    allowed = quota.isdigit() and period.isdigit() and int(period) > 0  # "max" or -1: no limit
    return int(quota) / int(period) if allowed else math.inf


def _disk(out: Path) -> tuple[dict[str, Any], str | None]:
    """The folder that could be tested, its free bytes, and why a checkpoint cannot be written."""
    folder = out
    while not system.lexists(folder) and folder != folder.parent:
        folder = folder.parent  # `nplm train` makes the folders that are missing
    disk: dict[str, Any] = {"folder": str(folder), "wanted": str(out), "free_bytes": None}
    if not files.is_directory(folder):
        return disk, f"{folder}: is no folder, so none can be made in it; choose another --out"
    try:
        disk["free_bytes"] = files.free_bytes(folder)
        place = files.make_unique_directory(folder / ".nplm-doctor")
        try:
            return disk, _write_test(place)
        finally:
            files.remove_directory(place)
    except NplmError as error:
        return disk, str(error)


def _write_test(place: Path) -> str | None:
    """A folder is written, synced, renamed and verified, as a checkpoint is."""
    content = b"\x00nplm\xff" * 10_000
    probe = files.write_directory(
        place / "step", {"probe": lambda path: files.write_bytes(path, content)}
    )
    if files.load_verified(probe)["probe"] != content:
        return f"{probe}: other bytes were read than written; use another disk"
    return None


def _self_tests(devices: dict[str, str]) -> dict[str, str | None]:
    """Name of each test of the arithmetic -> what is wrong, or None."""
    ids = Generator().manual_seed(1).randint(0, MODEL.vocab_size, (2, 5))
    before = default_generator.get_state()
    try:
        default_generator.manual_seed(1)
        model = Decoder(MODEL).to("cpu", "float64")
    finally:
        default_generator.set_state(before)
    loss, gradients = _loss_and_gradients(model, ids)
    results = {"gradient": _against_differences(model, ids, gradients)}
    for device in [name for name in devices if name != "cpu"]:
        try:
            other, theirs = _loss_and_gradients(model.to(device), ids)
        except (NplmError, RuntimeError) as error:
            results[device] = str(error).partition("\n")[0] or type(error).__name__
            continue
        close = _close(loss, other, FORMULA_64) and all(
            _close(a, b, FORMULA_64) for a, b in zip(gradients, theirs)
        )
        results[device] = None if close else "its loss or gradients are not NumPy's"
    return results


def _loss_and_gradients(model: Decoder, ids: Any) -> tuple[float, list[Any]]:
    ids = tensor(ids, device=str(next(iter(model.parameters())).device))
    model.zero_grad()
    loss = cross_entropy(model(ids[:, :-1]).reshape(-1, MODEL.vocab_size), ids[:, 1:].reshape(-1))
    loss.backward()
    return loss.item(), [p.grad.numpy().copy() for p in model.parameters() if p.grad is not None]


def _against_differences(model: Decoder, ids: Any, gradients: list[Any]) -> str | None:
    """The slope along one direction of each parameter, by its gradient and by differences."""
    h = 1e-6
    for (name, p), gradient in zip(model.named_parameters(), gradients):
        direction = np.where(gradient < 0, -1.0, 1.0)
        losses = []
        for shift in (h, -2 * h):
            p.data += tensor(shift * direction)
            losses.append(_loss_and_gradients(model, ids)[0])
        p.data += tensor(h * direction)
        slope, measured = float(abs(gradient).sum()), (losses[0] - losses[1]) / (2 * h)
        if not _close(slope, measured, FINITE_DIFFERENCES):
            return f"{name}: the gradient says {slope:.9g}, finite differences {measured:.9g}"
    return None


def _close(a: Any, b: Any, tolerance: Tolerance) -> bool:
    return bool(np.allclose(a, b, tolerance.rtol, tolerance.atol))


def _lines(found: dict[str, Any]) -> list[str]:
    devices = dict(found["devices"])
    if len(devices) == 2:  # torch, and no GPU
        devices["cuda"] = "none that this torch sees"
    packages = [f"{name} {version}" for name, version in found["packages"].items() if version]
    cores, disk = found["cores"], found["disk"]
    free = "unknown" if disk["free_bytes"] is None else report.amount(disk["free_bytes"])
    where = disk["folder"]
    if disk["wanted"] != where:
        where += f" ({disk['wanted']} does not exist yet)"
    lines = [
        f"python     {found['python']} on {found['platform']}",
        f"nplm       {found['nplm']}",
        f"packages   {', '.join(packages)}",
        *(f"device     {name}: {what}" for name, what in devices.items()),
        *(
            f"card       {name}: {text}"
            for name, facts in found["cards"].items()
            for text in _card_in_words(facts)
        ),
        *_kernels_in_words(found["kernels"]),
        f"cores      {cores['usable']:g} usable of {cores['machine']}",
    ]
    if found["tf32"] is not None:
        state = "on: float32 products may round to 10 bits" if found["tf32"] else "off"
        lines.append(f"tf32       {state}")
    for pool in found["blas"] or []:
        threads = report.counted(pool["num_threads"], "thread")
        lines.append(f"blas       {pool['internal_api']} {pool['version']}, {threads}")
    lines.append(f"disk       {free} free in {where}")
    lines += [f"test       {name}: {result}" for name, result in found["tests"].items()]
    uses = NEEDED | OPTIONAL
    for name, command in found["missing"].items():
        kind = "needed" if name in NEEDED else "optional"
        lines.append(f"missing    {name} ({kind}: it {uses[name]}): {command}")
    return lines


def _card_in_words(facts: dict[str, Any]) -> list[str]:
    if "problem" in facts:
        return [f"cannot be asked: {facts['problem']}"]
    able = {"bfloat16": "bfloat16", "flash_attention": "flash attention",
            "cudnn_attention": "cuDNN attention"}  # fmt: skip
    return [
        f"{report.amount(facts['memory_bytes'])}, compute capability "
        f"{facts['compute_capability']}, driver {facts['driver']}, CUDA {facts['cuda']}",
        ", ".join(f"{what} {'yes' if facts[key] else 'no'}" for key, what in able.items()),
    ]


def _kernels_in_words(kernels: dict[str, list[dict[str, str]]]) -> list[str]:
    """A line for each op of each device, or one a dtype where these differ."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for device, choices in kernels.items():
        for choice in choices:
            key = (device, choice["op"], choice["kernel"], choice["why"])
            lines.setdefault(key, []).append(choice["dtype"])
    return [
        f"kernel     {device} {op}"
        + f" in {dtypes[0]}" * (len(dtypes) == 1)
        + f": {kernel} ({why})"
        for (device, op, kernel, why), dtypes in lines.items()
    ]

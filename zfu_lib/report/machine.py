"""What this machine has, and whether a run fits in it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from zfu_lib.report import paths
from zfu_lib.report.profiles import Cost, Download

GB = 1024**3
# Rough sizes on disk of torch 2.11 to 2.13 for Linux, with the nvidia packages that the CUDA build brings.
TORCH_CUDA, TORCH_CPU = "5 to 7 GB", "1 GB"


@dataclass(frozen=True)
class Machine:
    """Sizes in GB of 1024³ bytes; ``gpus`` as (name, memory)."""

    cores: int
    memory_gb: float
    memory_free_gb: float
    disk_free_gb: float
    gpus: tuple[tuple[str, float], ...]


def look() -> Machine:
    """This machine, as a run would find it (the limits of a container count)."""
    memory = psutil.virtual_memory()
    limit = _container_limit() or memory.total
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=min(memory.total, limit) / GB,
        memory_free_gb=min(memory.available, limit) / GB,
        disk_free_gb=shutil.disk_usage(paths.root()).free / GB,
        gpus=_gpus(),
    )


def jobs() -> int:
    """How many quick notebooks to run side by side: one per core, and about 3 GB of memory for each."""
    machine = look()
    return max(1, min(machine.cores, int(machine.memory_gb // 3)))


def obstacles(cost: Cost, profile: str, machine: Machine, *, hub: bool | None = None) -> list[str]:
    """Why a run cannot be made here; empty if it fits.

    Args:
        hub: whether the hub answers; None leaves it out (nothing is to be downloaded).
    """
    found = []
    if cost.memory_gb > machine.memory_gb:
        found.append(f"needs {cost.memory_gb:g} GB of memory, this machine has {machine.memory_gb:.1f}")
    downloads = [d for d in cost.downloads if not in_cache(d)]
    disk = cost.disk_gb + sum(d.gigabytes for d in downloads)
    if disk > machine.disk_free_gb:
        found.append(f"needs {disk:.1f} GB of disk, {machine.disk_free_gb:.1f} are free")
    # `full` follows the device it finds and scales down on a CPU; `paper` has no smaller form.
    if profile == "paper" and cost.gpu_memory_gb > max((memory for _, memory in machine.gpus), default=0):
        have = ", ".join(f"{name} with {memory:.0f} GB" for name, memory in machine.gpus) or "none"
        found.append(f"needs a GPU with {cost.gpu_memory_gb:g} GB; found: {have}")
    if profile == "paper" and downloads and hub is False:
        found.append(f"needs {', '.join(d.id for d in downloads)} from the hub, which does not answer")
    return found


def remarks(cost: Cost, profile: str, machine: Machine) -> list[str]:
    """What is worth knowing before a run that does fit."""
    found = []
    if cost.memory_gb > machine.memory_free_gb:
        found.append(f"{cost.memory_gb:g} GB of memory are needed and {machine.memory_free_gb:.1f} are free now")
    largest = max((memory for _, memory in machine.gpus), default=0)
    if profile == "full" and cost.gpu_memory_gb > largest:
        found.append("no GPU large enough: runs on the CPU, scaled down; the notebook says by how much")
    return found


def in_cache(download: Download) -> bool:
    """Whether a hub download is already on this machine."""
    from huggingface_hub import constants

    folder = download.id.replace("/", "--")
    return any(
        (Path(constants.HF_HUB_CACHE) / f"{kind}--{folder}" / "snapshots").is_dir() for kind in ("models", "datasets")
    )


def hub_answers(seconds: float = 5) -> bool:
    """Whether the hub can be reached from here now."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def checks() -> list[tuple[str, bool | None, str]]:
    """What `zfu doctor` says: (subject, fine / not fine / only good to know, words)."""
    machine = look()
    found: list[tuple[str, bool | None, str]] = [
        ("python", True, platform.python_version()),
        ("cores", None if machine.cores >= 2 else False, str(machine.cores)),
        (
            "memory",
            machine.memory_gb >= 7.5,
            f"{machine.memory_gb:.1f} GB, {machine.memory_free_gb:.1f} free (quick needs 8)",
        ),
        ("disk", machine.disk_free_gb >= 2, f"{machine.disk_free_gb:.1f} GB free"),
        (
            "gpu",
            None,
            "; ".join(f"{name}, {memory:.0f} GB" for name, memory in machine.gpus) or "none (quick needs none)",
        ),
        _torch(machine),
    ]
    found.append(("triton", None, _version("triton") or "absent: kernels fall back to PyTorch"))
    chromium = browser()
    found.append(("browser", None, chromium or "no Chromium: the site's browser checks will not run"))
    hub = _version("kernels")
    words = "absent, as it should be" if hub is None else f"{hub} shadows ours: pip uninstall kernels"
    found.append(("HF kernels package", hub is None, words))
    encoder = importlib.util.find_spec("sentence_transformers") is not None
    found.append(("sentence encoder", None, "installed" if encoder else "absent: pip install -e '.[encoder]'"))
    folder = os.environ.get("ZFU_DATA")
    if folder is None:
        found.append(("data folder", None, "ZFU_DATA is not set: data sets come from the user cache or a download"))
    else:
        there = Path(folder).is_dir()
        found.append(
            ("data folder", there, "ZFU_DATA is set" if there else "ZFU_DATA names a folder that does not exist")
        )
    return found


def browser() -> str | None:
    """Name of the Chromium or Chrome on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((name for name in names if shutil.which(name)), None)


def _torch(machine: Machine) -> tuple[str, bool | None, str]:
    version = _version("torch")
    if version is None:
        return "torch", False, "absent: make env"
    # The local version tells the build; asking torch itself would cost seconds and memory.
    cuda = any(name.startswith("nvidia-") for name in _installed()) or "+cu" in version
    build = f"CUDA build, about {TORCH_CUDA}" if cuda else f"CPU build, about {TORCH_CPU}"
    if cuda and not machine.gpus:
        build += "; there is no GPU here, the CPU build (README, 'Smaller without a GPU') saves the difference"
    if machine.gpus and not cuda:
        build += "; there is a GPU here that this build cannot use (README, 'With a GPU')"
    return "torch", None, f"{version}, {build}"


def _installed() -> list[str]:
    return [distribution.metadata["Name"] or "" for distribution in metadata.distributions()]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _container_limit() -> int | None:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(file).read_text())
        except (OSError, ValueError):
            continue
    return None


def _gpus() -> tuple[tuple[str, float], ...]:
    call = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (line.rpartition(",") for line in text.splitlines() if "," in line)
    return tuple((name.strip(), float(memory) / 1024) for name, _, memory in rows if memory.strip().isdigit())

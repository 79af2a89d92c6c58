"""What the figures depend on beside the code: processor, versions, commit, date."""

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "transformers", "numpy")
_CPUINFO, _MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and with what a benchmark ran; ``date`` is the day in UTC."""

    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_gib: float | None
    system: str
    versions: Mapping[str, str]
    commit: str
    date: str


def this_machine() -> Machine:
    """Look; what cannot be found out is ``unknown`` or None."""
    cpu = _facts(_CPUINFO)
    memory = _facts(_MEMINFO).get("MemTotal")
    flags = set(cpu.get("flags", "").split())
    return Machine(
        cpu=cpu.get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        memory_gib=round(_kib(memory) / 2**20, 1) if memory else None,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        versions={name: _version(name) for name in _PACKAGES},
        commit=_commit(),
        date=datetime.now(UTC).date().isoformat(),
    )


def available_bytes() -> int | None:
    """Return the memory that can be had without swapping; None where the system does not tell."""
    available = _facts(_MEMINFO).get("MemAvailable")
    return 1024 * _kib(available) if available else None


def _kib(text: str) -> int:
    return int(text.split()[0])


def _facts(file: Path) -> dict[str, str]:
    """Read lines of ``key : value``; of several processors the last one counts."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _commit() -> str:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()

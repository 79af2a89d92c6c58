"""What this machine has to compute on, by torch's names: ``cpu``, ``cuda``, ``cuda:1``."""

from pathlib import Path

import torch


def missing_device(device: str) -> str | None:
    """Say why torch cannot compute there; None if it can."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # torch's ways of having none
        return f"no device {device}: {str(error).splitlines()[0]}"
    return None


def is_bf16_fast(device: str = "cpu") -> bool:
    """Tell whether a device multiplies bf16 in hardware; where it does not, fp32 is faster.

    For a CPU it asks the operating system's list of features, since torch has no public question.
    """
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})

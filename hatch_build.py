"""Builds the native kernel when a compiler is found; without one torch computes everything."""

import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = Path("server/upt_server/native")
_SOURCES = ("tiles.h", "vectors.h", "kernel.cpp")
_FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wall", "-Wextra"]
_MACHINES = {
    "avx2": ["-march=x86-64-v3"],
    # what every CPU with AVX-512 has, and two extensions that are asked for before they are used
    "avx512": ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mprefer-vector-width=512"],
}


class KernelBuildHook(BuildHookInterface[Any]):
    """Compiles ``kernel.cpp`` beside itself, twice, and marks the wheel as this platform's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before the files are collected, for wheels and editable installations alike."""
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
            self.app.display_warning(
                "no native kernel: it needs a C++ compiler and Linux on x86-64"
            )
            return
        folder = Path(self.root) / _FOLDER
        sources = [folder / name for name in _SOURCES]
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
        identity = f'-DUPT_SOURCE="{digest}"'
        for machine, flags in _MACHINES.items():
            library = folder / f"libupt_kernel_{machine}.so"
            partial = library.with_suffix(".partial")
            command = [compiler, *_FLAGS, *flags, identity, str(sources[-1]), "-o", str(partial)]
            library.unlink(missing_ok=True)  # one of another source is worse than none
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode:
                self.app.display_warning(
                    f"no native kernel for {machine}: {compiler} failed\n{built.stderr}"
                )
                continue
            partial.replace(library)
            build_data["artifacts"].append(f"{_FOLDER}/{library.name}")
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

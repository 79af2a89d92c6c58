"""The kernel for CPUs with AVX-512 and AMX, compiled for those that have neither."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from upt_server.native.library import SOURCES

_FOLDER = Path(__file__).parent
_FLAGS = "-std=c++17 -O2 -march=x86-64-v3 -fopenmp -fPIC -shared -include avx512.h"


def find_compiler() -> str | None:
    """Return what compiles C++ here, if anything does."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def build(compiler: str, folder: Path) -> Path:
    """Compile the kernel's own sources with emulated instructions; return the library."""
    for file in (*SOURCES, *_FOLDER.glob("*.h")):  # the emulated tiles.h comes last
        shutil.copy(file, folder)
    source = hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest()
    library = folder / "libupt_kernel_avx512.so"
    identity = f'-DUPT_SOURCE="{source}"'
    command = [compiler, *_FLAGS.split(), identity, "kernel.cpp", "-o", library.name]
    built = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return library

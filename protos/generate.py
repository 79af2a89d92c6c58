"""Generate the stubs beside their .proto files; ``--check`` compares instead and changes nothing.

``make protos`` and ``make check`` run it in an environment of its own, that of requirements.txt.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from grpc_tools import protoc

ROOT = Path(__file__).parent
OUTPUTS = ("python", "grpc_python", "mypy", "mypy_grpc")


def main() -> int:
    """Generate or check, as the command line says; return the exit code."""
    match sys.argv[1:]:
        case []:
            return generate(ROOT)
        case ["--check"]:
            return check()
    sys.stderr.write("usage: python protos/generate.py [--check]\n")
    return 2


def generate(output: Path) -> int:
    """Generate for every .proto file into ``output``; return protoc's exit code."""
    # protoc finds its mypy plugin on the path: that of the running interpreter
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    sources = sorted(str(file.relative_to(ROOT)) for file in ROOT.rglob("*.proto"))
    outputs = [f"--{kind}_out={output}" for kind in OUTPUTS]
    code: int = protoc.main(["protoc", f"-I{ROOT}", *outputs, *sources])
    return code


def check() -> int:
    """Name every stub that is missing, left over or not what its .proto file gives."""
    with TemporaryDirectory() as directory:
        if code := generate(Path(directory)):
            return code
        fresh, committed = stubs(Path(directory)), stubs(ROOT)
    stale = sorted(name for name in fresh | committed if fresh.get(name) != committed.get(name))
    for name in stale:
        sys.stderr.write(f"{name}: not what the .proto files give; run `make protos`\n")
    return 1 if stale else 0


def stubs(folder: Path) -> dict[str, bytes]:
    """Read every generated file under a folder, by its path there."""
    files = (file for file in folder.rglob("*_pb2*") if file.suffix in (".py", ".pyi"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


if __name__ == "__main__":
    sys.exit(main())

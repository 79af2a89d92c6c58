"""Generate the stubs beside their .proto files; CI runs it and fails on a difference.

python -m venv .venv-protos
.venv-protos/bin/pip install -r protos/requirements.txt
.venv-protos/bin/python protos/generate.py
"""

import os
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
OUTPUTS = ("python", "grpc_python", "mypy", "mypy_grpc")


def main() -> int:
    """Generate for every .proto file and return protoc's exit code."""
    # protoc finds its mypy plugin on the path: that of the running interpreter
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    sources = sorted(str(file.relative_to(ROOT)) for file in ROOT.rglob("*.proto"))
    outputs = [f"--{output}_out={ROOT}" for output in OUTPUTS]
    code: int = protoc.main(["protoc", f"-I{ROOT}", *outputs, *sources])
    return code


if __name__ == "__main__":
    sys.exit(main())

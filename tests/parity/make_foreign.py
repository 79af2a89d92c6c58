"""Make the checkpoints of other libraries, and let these libraries load ours.

The libraries pin other versions of transformers, so each has an environment of its own, and this
script starts them:

    python3 -m venv peft
    peft/bin/pip install torch==2.13.0 peft==0.21.2 transformers==5.24.0
    python3 -m venv adapterhub
    adapterhub/bin/pip install torch==2.13.0 adapters==1.3.0 transformers==4.57.6
    PYTHONPATH=tests python -m parity.make_foreign --peft peft/bin/python \\
        --adapterhub adapterhub/bin/python

Nothing is trained: the libraries save random numbers with their own functions, on the tiny
backbones of ``upt_testing``. With ``--exports-only`` the checkpoints stay as they are.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from parity.foreign import (
    CHECKPOINTS,
    EXPORTS,
    case_names,
    expected_logits,
    export_digest,
    family_of,
    import_case,
    native_adapters,
    our_logits,
)
from parity.foreign_backbones import write_pooled_backbone
from parity.foreign_inputs import Family
from upt_zoo.backbone import Backbone
from upt_zoo.interop.library import Library

FAMILIES: tuple[Family, ...] = ("bert", "roberta")


def main() -> None:
    """Make the checkpoints, export what they are imported as, and record how that loads."""
    parser = argparse.ArgumentParser(description="Make checkpoints of other libraries.")
    for library in Library:
        parser.add_argument(f"--{library}", type=Path, required=True, help="its python")
    parser.add_argument("--exports-only", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        backbones = {name: write_pooled_backbone(root / name, name) for name in FAMILIES}
        results = {}
        for library in Library:
            python: Path = getattr(options, library)
            if not options.exports_only:
                shutil.rmtree(CHECKPOINTS / library, ignore_errors=True)
                run(python, library, "make", root, CHECKPOINTS / library)
            results[str(library)] = check_exports(python, library, backbones, root)
    EXPORTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


def check_exports(
    python: Path, library: Library, backbones: dict[Family, Backbone], root: Path
) -> dict[str, dict[str, str | float]]:
    """Export every case and adapters of our own; return digests and the library's differences."""
    exports, expected = root / f"{library}-exports", root / f"{library}-expected"
    exports.mkdir()
    expected.mkdir()
    digests = {}
    for case in case_names(library):
        checkpoint = import_case(library, case, backbones[family_of(case)])
        digests[case] = export_digest(library, checkpoint, exports / case)
        save_file(expected_logits(library, case), expected / f"{case}.safetensors")
    for backbone in backbones.values():
        for case, checkpoint in native_adapters(library, backbone).items():
            digests[case] = export_digest(library, checkpoint, exports / case)
            logits = our_logits(checkpoint, backbone, torch.float64)
            save_file(logits, expected / f"{case}.safetensors")
    result = root / f"{library}.json"
    run(python, library, "check", root, exports, result, expected)
    differences = json.loads(result.read_text())
    return {
        case: {"files": digest, "difference": differences[case]} for case, digest in digests.items()
    }


def run(python: Path, library: Library, command: str, *paths: Path) -> None:
    """Run the library's own half of this script in its environment."""
    subprocess.run(
        [python, "-m", f"parity.foreign_{library}", command, *paths],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"},
    )


if __name__ == "__main__":
    main()

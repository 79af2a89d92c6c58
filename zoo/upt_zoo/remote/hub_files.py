"""Where the parts of an adapter lie in a Hub's repository. Pure.

upt/manifest.json, upt/spec.json, upt/tensors.safetensors, upt/card.md
                                    the adapter to the byte; ``upt-zoo register`` takes the folder
upt/signatures/HEX.json             the signatures of the manifest with that digest
README.md                           the repository's page
adapter_config.json and others      a checkpoint of PEFT or AdapterHub
"""

from upt_zoo.interop import adapterhub_names, peft
from upt_zoo.manifest import CARD_TYPE, CONFIG_TYPE, TENSORS_TYPE, Descriptor
from upt_zoo.signatures import MAX_PAYLOAD_BYTES, MAX_SIGNATURES

MANIFEST = "upt/manifest.json"
PAGE = "README.md"
FIRST_FILES = frozenset({PAGE, ".gitattributes"})  # what the Hub itself puts into a new repository
PEFT_FILES = frozenset({peft.CONFIG, peft.WEIGHTS, peft.PICKLED})
ADAPTERHUB_FILES = frozenset(
    {
        adapterhub_names.CONFIG,
        adapterhub_names.WEIGHTS,
        adapterhub_names.PICKLED,
        adapterhub_names.HEAD_CONFIG,
        adapterhub_names.HEAD_WEIGHTS,
        adapterhub_names.HEAD_PICKLED,
    }
)
CHECKPOINT_FILES = PEFT_FILES | ADAPTERHUB_FILES
MAX_SIGNATURES_BYTES = MAX_SIGNATURES * 3 * MAX_PAYLOAD_BYTES  # payloads as text within JSON

_BLOBS = {
    CONFIG_TYPE: "upt/spec.json",
    TENSORS_TYPE: "upt/tensors.safetensors",
    CARD_TYPE: "upt/card.md",
}


def blob_file(blob: Descriptor) -> str:
    """Return where a blob of a manifest lies."""
    return _BLOBS[blob.media_type]


def signatures_file(digest: str) -> str:
    """Return where the signatures of a manifest lie."""
    return f"upt/signatures/{digest.removeprefix('sha256:')}.json"

"""What a Hub's repository holds of an adapter: its bytes, a page for people, a checkpoint. Pure.

The page is the adapter's card with the metadata that the Hub shows and searches, and how to use it.
The checkpoint is PEFT's where PEFT can express the adapter, else AdapterHub's where that library
can; the interop package says which.

Source: the Hub's model card specification (modelcard.md of huggingface/hub-docs).
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from upt_zoo.errors import InvalidSpec
from upt_zoo.interop.library import Checkpoint, Library, export_checkpoint
from upt_zoo.local.store import StoredAdapter
from upt_zoo.remote.hub_files import MANIFEST, PAGE, blob_file
from upt_zoo.spec import AdapterSpec, HeadKind
from upt_zoo.tensors import read_tensors

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LICENCES = frozenset(  # of those that the Hub has names for
    {
        *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "mit", "mpl-2.0", "unlicense"),
        *("agpl-3.0", "gpl-3.0", "lgpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0"),
        *("cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "unknown"),
    }
)
_PIPELINES: Mapping[HeadKind, str] = {
    "span": "question-answering",
    "token_classification": "token-classification",
    "embedding": "feature-extraction",
}
_TAGS: Mapping[Library | None, str] = {
    Library.PEFT: "peft",
    Library.ADAPTERHUB: "adapter-transformers",
    None: "upt",
}
_MODELS: Mapping[HeadKind, str] = {
    "span": "AutoModelForQuestionAnswering",
}
_PEFT_USE = """\
from peft import PeftModel
from transformers import {model}

backbone = {model}.from_pretrained("{backbone}"{outputs})
model = PeftModel.from_pretrained(backbone, "{repository}", revision="{version}")"""
_ADAPTERHUB_USE = """\
from adapters import AutoAdapterModel

model = AutoAdapterModel.from_pretrained("{backbone}")
model.load_adapter(
    "{repository}", source="hf", version="{version}", use_safetensors=True, set_active=True
)"""
_USES: Mapping[Library, tuple[str, str]] = {
    Library.PEFT: ("PEFT", _PEFT_USE),
    Library.ADAPTERHUB: ("AdapterHub's `adapters`", _ADAPTERHUB_USE),
}


def repository_files(
    stored: StoredAdapter, blobs: Sequence[bytes], *, repository: str, reference: str
) -> dict[str, bytes]:
    """Return every file of a version's commit by its path; ``blobs`` are those of its manifest.

    ``reference`` is what pulls the version.
    """
    card = blobs[2].decode()
    library, checkpoint = _checkpoint(stored.spec, blobs[1], card)
    page = _page(stored, library, card, repository=repository, reference=reference)
    adapter = {
        blob_file(blob): data for blob, data in zip(stored.manifest.blobs, blobs, strict=True)
    }
    return checkpoint | adapter | {MANIFEST: stored.manifest.to_json(), PAGE: page.encode()}


def _checkpoint(
    spec: AdapterSpec, tensors: bytes, card: str
) -> tuple[Library | None, dict[str, bytes]]:
    """Return the first library that can express the adapter, and the files; None and no files."""
    checkpoint = Checkpoint(spec=spec, tensors=read_tensors(tensors), card=card)
    for library in (Library.PEFT, Library.ADAPTERHUB):
        with tempfile.TemporaryDirectory(prefix="upt-") as folder:
            directory = Path(folder) / library
            try:
                export_checkpoint(library, checkpoint, directory)
            except InvalidSpec:
                continue
            return library, {file.name: file.read_bytes() for file in directory.iterdir()}
    return None, {}


def _page(
    stored: StoredAdapter, library: Library | None, card: str, *, repository: str, reference: str
) -> str:
    return (
        f"---\n{_metadata(stored.spec, library)}\n---\n\n{card.strip()}\n\n"
        f"{_use(stored, library, repository=repository, reference=reference)}"
    )


def _metadata(spec: AdapterSpec, library: Library | None) -> str:
    """Write the front matter; the Hub refuses names of licences and models that it cannot have."""
    licence = spec.lineage.licence.strip().lower()
    is_known = licence in _LICENCES
    backbone = spec.backbone.hub_id
    is_on_hub = _HUB_ID.fullmatch(backbone) is not None
    pipeline = _PIPELINES.get(spec.head.kind, "text-classification")
    data = ModelCardData(
        base_model=backbone if is_on_hub else None,
        base_model_relation="adapter" if is_on_hub else None,
        license=licence if is_known else "other",
        license_name=None if is_known else re.sub(r"[^a-z0-9.]+", "-", licence).strip("-"),
        library_name=_TAGS[library],
        pipeline_tag=pipeline,
        tags=list(dict.fromkeys(["upt", spec.method, spec.backbone.family, _TAGS[library]])),
        model_name=spec.task.name,
        eval_results=[_result(spec, pipeline, *each) for each in spec.lineage.metrics.items()],
    )
    return str(data.to_yaml())


def _result(spec: AdapterSpec, pipeline: str, metric: str, percent: float) -> EvalResult:
    split, _, kind = metric.rpartition("/")
    return EvalResult(
        task_type=pipeline,
        dataset_type=spec.task.name,
        dataset_name=spec.lineage.data,
        dataset_split=split or None,
        metric_type=kind,
        metric_name=f"{kind}, %",
        metric_value=percent,
    )


def _use(stored: StoredAdapter, library: Library | None, *, repository: str, reference: str) -> str:
    text = (
        f"## Use\n\nTo the byte, with every digest checked:\n\n"
        f"```sh\nupt-zoo pull {reference}@{stored.digest}\n```\n"
    )
    if library is None:
        return text
    name, code = _USES[library]
    head = stored.spec.head
    code = code.format(
        backbone=stored.spec.backbone.hub_id,
        model=_MODELS.get(head.kind, "AutoModelForSequenceClassification"),
        outputs="" if head.kind == "span" else f", num_labels={head.outputs}",
        repository=repository,
        version=stored.version,
    )
    return f"{text}\nWith {name}:\n\n```python\n{code}\n```\n"

"""An adapter of a store on its backbone, to answer in this process as a server does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from upt_training.evaluation import answers_in_process, gates_in_process
from upt_zoo.answers import Answer
from upt_zoo.backbone import resolve_backbone
from upt_zoo.errors import WrongBackbone
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder, load_encoder
from upt_zoo.spec import AdapterSpec
from upt_zoo.tokenization import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """All that answers: in fp32, without the recipe's own dropout or precision."""

    encoder: Encoder
    tokenizer: Tokenizer
    spec: AdapterSpec
    adapter: PreparedAdapter

    def answers(self, texts: Sequence[tuple[str, ...]]) -> list[Answer]:
        """Answer all inputs."""
        return answers_in_process(self.encoder, self.adapter, self.spec, self.tokenizer, texts)

    def gates(self, texts: Sequence[tuple[str, ...]]) -> list[dict[str, float]]:
        """Return each layer's gates by name, the mean over all inputs."""
        return gates_in_process(self.encoder, self.adapter, self.spec, self.tokenizer, texts)

    def of_another(self, store: Store, stored: StoredAdapter) -> "Model":
        """Return the same backbone with another adapter, which has to belong to it.

        Raises:
            Corrupt: the adapter's bytes are damaged.
        """
        spec, adapter = _prepared(store, stored)
        return replace(self, spec=spec, adapter=adapter)


def load_model(store: Store, stored: StoredAdapter) -> Model:
    """Load an adapter and its backbone.

    Raises:
        BackboneNotFound: the backbone is not on this machine nor on the hub.
        Corrupt: the adapter's bytes are damaged.
        WrongBackbone: the backbone of that name is another one here.
    """
    backbone = resolve_backbone(stored.spec.backbone.hub_id)
    if backbone.identity.digest != stored.spec.backbone.digest:
        raise WrongBackbone(
            f"{stored.reference} belongs to {stored.spec.backbone.digest}, the backbone "
            f"{backbone.identity.hub_id} on this machine is {backbone.identity.digest}"
        )
    spec, adapter = _prepared(store, stored)
    return Model(
        encoder=load_encoder(backbone),
        tokenizer=Tokenizer(backbone.tokenizer_file),
        spec=spec,
        adapter=adapter,
    )


def _prepared(store: Store, stored: StoredAdapter) -> tuple[AdapterSpec, PreparedAdapter]:
    spec, arrays = store.load(stored)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return spec, prepare(spec, tensors, dtype=torch.float32)

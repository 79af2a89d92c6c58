"""AdapterHub's ``adapters``: UniPELT+Prompt and a head for each task, one forward an adapter."""

from adapterhub_worker import add_adapters
from adapters import AutoAdapterModel
from grouped_server import Forward, Setup, serve
from torch import Tensor


def load(setup: Setup) -> Forward:
    """Load one backbone with all adapters and their heads."""
    model = AutoAdapterModel.from_pretrained(setup.checkpoint)
    names = add_adapters(model, setup.models)
    for name in names:
        model.add_classification_head(name, num_labels=2, layers=1, use_pooler=False)
    model.eval()

    def forward(index: int, inputs: dict[str, Tensor]) -> Tensor:
        model.set_active_adapters(names[index])  # and the head of that name
        logits: Tensor = model(**inputs).logits
        return logits

    return forward


if __name__ == "__main__":
    serve(load, ("adapters", "transformers", "torch", "grpcio"))

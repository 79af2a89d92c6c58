"""AdapterHub's ``adapters``: UniPELT+Prompt, one forward for each distinct adapter.

That is its only correct way: its batch split gives every row the first adapter's prompt.
"""

from collections.abc import Callable

import adapters
from adapters import ConfigUnion, PromptTuningConfig, UniPELTConfig
from transformers import AutoModel, PreTrainedModel
from worker import Setup, padded, work

PROMPT_LENGTH = 10


def add_adapters(model: PreTrainedModel, count: int) -> list[str]:
    """Give the model that many adapters, their prefixes folded; return their names."""
    config = ConfigUnion(*UniPELTConfig().configs, PromptTuningConfig(prompt_length=PROMPT_LENGTH))
    names = [f"adapter{index}" for index in range(count)]
    for name in names:
        model.add_adapter(name, config=config)
        model.eject_prefix_tuning(name)
    return names


def prepare(setup: Setup) -> Callable[[], object]:
    """Load the model with all adapters."""
    model = AutoModel.from_pretrained(setup.checkpoint, add_pooling_layer=False).eval()
    adapters.init(model)
    names = add_adapters(model, setup.adapters)
    model.eval()
    pad = model.config.pad_token_id
    groups = [
        (name, padded(setup.rows[index :: setup.adapters], pad)) for index, name in enumerate(names)
    ]

    def run() -> None:
        for name, inputs in groups:
            model.set_active_adapters(name)
            model(**inputs)

    return run


if __name__ == "__main__":
    work(prepare, ("adapters", "transformers", "torch"))

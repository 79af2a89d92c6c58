"""Hugging Face's ``peft``: a mixed batch of LoRA adapters, the only kind it can mix."""

from collections.abc import Callable

from peft import LoraConfig, get_peft_model
from transformers import AutoModel
from worker import Setup, padded, work


def prepare(setup: Setup) -> Callable[[], object]:
    """Load the model with all adapters: rank 8 on query and value, as ours."""
    model = AutoModel.from_pretrained(setup.checkpoint, add_pooling_layer=False)
    pad = model.config.pad_token_id
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=["query", "value"],
        init_lora_weights=False,
    )
    names = [f"adapter{index}" for index in range(setup.adapters)]
    mixed = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        mixed.add_adapter(name, config)
    mixed.eval()
    inputs = padded(setup.rows, pad)
    names_of_rows = [names[index % len(names)] for index in range(len(setup.rows))]
    return lambda: mixed(**inputs, adapter_names=names_of_rows)


if __name__ == "__main__":
    work(prepare, ("peft", "transformers", "torch"))

"""How AdapterHub names its files and its tensors, those without the model's prefix."""

from dataclasses import dataclass

from upt_zoo.interop.parts import LINEARS
from upt_zoo.spec import LoraTarget

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"
HEAD_CONFIG, HEAD_WEIGHTS = "head_config.json", "model_head.safetensors"
HEAD_PICKLED = "pytorch_model_head.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The tensors of an adapter; linear layers and gates go on with weight and bias."""

    adapter: str

    def lora(self, layer: int, target: LoraTarget) -> str:
        """LoRA on a linear layer: ``lora_A``, ``lora_B`` and ``gate``."""
        return f"encoder.layer.{layer}.{LINEARS[target]}.loras.{self.adapter}"

    def bottleneck(self, layer: int) -> str:
        """A bottleneck: ``adapter_down.0``, ``adapter_up``, ``gate`` and ``scaling``."""
        return f"encoder.layer.{layer}.output.adapters.{self.adapter}"

    def prefix(self) -> str:
        """The prefix of all layers: ``control_trans``, or ``wte`` and a network."""
        return f"prefix_tuning.prefix_tunings.{self.adapter}.self_prefix"

    def prefix_copy(self, layer: int) -> str:
        """Where a layer repeats the prefix of all layers."""
        return f"encoder.layer.{layer}.attention.self.prefix_tuning.pool.{self.prefix()[14:]}"

    def prefix_gate(self, layer: int) -> str:
        """The gates of a layer's prefix."""
        return f"encoder.layer.{layer}.attention.self.prefix_tuning.prefix_gates.{self.adapter}"

    def prompt(self) -> str:
        """The vectors of the prompt."""
        return f"prompt_tuning.prompt_tunings.{self.adapter}.prompt_embedding.weight"

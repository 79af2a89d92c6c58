"""ONNX Runtime: the bare backbone, exported as it is, padded rows, fp32."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from transformers import AutoModel
from worker import Setup, padded, work


class LastHiddenState(nn.Module):
    """The encoder with tensors in and a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden states [row, token, hidden]."""
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return states


def prepare(setup: Setup) -> Callable[[], object]:
    """Export the backbone and open a session with the same number of threads."""
    model = AutoModel.from_pretrained(setup.checkpoint, add_pooling_layer=False).eval()
    inputs = padded(setup.rows, model.config.pad_token_id)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        # the shapes are those of the batch: the best that ONNX Runtime can be given
        torch.onnx.export(LastHiddenState(model), tuple(inputs.values()), file, dynamo=True)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    arrays = {name: inputs[name].numpy() for name in names}
    return lambda: session.run(None, arrays)


if __name__ == "__main__":
    work(prepare, ("onnxruntime", "transformers", "torch"))

"""The two promises about numbers, and the runners that can keep each of them.

``exact`` computes in fp32. ``fast`` multiplies the backbone's linear layers in bf16, or in int8
with one scale a token; adapters, attention and heads stay in fp32 but with torch.
"""

from typing import Literal

Precision = Literal["exact", "fast"]
RunnerName = Literal["native-fp32", "native-bf16", "native-int8", "torch-fp32", "torch-bf16"]
RunnerChoice = Literal[RunnerName, "auto"]

RUNNERS: dict[Precision, tuple[RunnerName, ...]] = {
    "exact": ("native-fp32", "torch-fp32"),
    "fast": ("native-int8", "native-bf16", "torch-bf16"),
}

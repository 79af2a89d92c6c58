"""The two promises about numbers, the runners that can keep each of them, and how they are checked.

``exact`` computes in fp32. ``fast`` multiplies the backbone's linear layers in bf16, or in int8
with one scale a token; adapters, attention and heads stay in fp32 but with torch.
"""

from typing import Literal

Precision = Literal["exact", "fast"]
RunnerName = Literal["native-fp32", "native-bf16", "native-int8", "torch-fp32", "torch-bf16"]
RunnerChoice = Literal[RunnerName, "auto"]
CheckedLoads = Literal["all", "start", "off"]

RUNNERS: dict[Precision, tuple[RunnerName, ...]] = {
    "exact": ("native-fp32", "torch-fp32"),
    "fast": ("native-int8", "native-bf16", "torch-bf16"),
}
# how far an adapter's answer may be from its example in fp32, as a share of its largest logit; of
# eleven adapters and six texts the farthest was 1e-6 away with native-fp32, 0.04 with native-int8
TOLERANCES: dict[Precision, float] = {"exact": 1e-3, "fast": 0.2}

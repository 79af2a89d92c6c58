"""The tiny backbones of ``upt_testing`` with a pooler, which heads of other libraries read."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from upt_testing.backbones import HIDDEN, write_tiny_backbone
from upt_zoo.backbone import Backbone
from upt_zoo.spec import Family


def write_pooled_backbone(directory: Path, family: Family) -> Backbone:
    """Write a tiny backbone and a pooler beside it; the identity knows no pooler."""
    backbone = write_tiny_backbone(directory, family)
    source = np.random.RandomState(7)  # the stream that numpy promises never to change
    weight = (0.1 * source.standard_normal((HIDDEN, HIDDEN))).astype(np.float32)
    bias = (0.1 * source.standard_normal(HIDDEN)).astype(np.float32)
    pooler = {"pooler.dense.weight": weight, "pooler.dense.bias": bias}
    save_file(load_file(backbone.weights_file) | pooler, backbone.weights_file)
    return backbone

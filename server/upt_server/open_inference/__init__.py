"""The Open Inference Protocol beside ``upt.v1``: a model is an adapter. Translation only.

Source: kserve/open-inference-protocol, specification/protocol; Triton's extensions for model
configuration, statistics, the model repository, streaming and binary tensors.
``upt_server.client`` must not import this: two copies of the protocol's stubs cannot live in one
process, and callers may bring Triton's.
"""

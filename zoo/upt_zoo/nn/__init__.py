"""The adapter maths on a frozen encoder: many adapters in one forward pass over packed tokens.

The path of a batch: ``packing.pack`` decides where each token stands, ``layers.run_layers`` does
the maths of the encoder and the adapters, ``heads.row_logits`` gives each row its logits;
``forward.forward`` calls the three.

Axis words: ``row`` one input row; ``token`` one packed token, prompt vectors included; ``hidden``
the encoder's width; ``layer``; ``rank`` columns of a low-rank product; ``gate``; ``output``.
"""

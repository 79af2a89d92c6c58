"""The adapter maths on a frozen encoder: many adapters in one forward pass over packed tokens.

The path of a batch: ``packing.pack`` decides where each token stands, ``layers.run_layers`` does
the maths of the encoder and the adapters, ``heads.row_logits`` gives each row its logits;
``forward.forward`` calls the three.

Axis words: ``row`` one input row; ``token`` one packed token, prompt vectors included; ``real`` one
real token; ``hidden`` the encoder's width; ``layer``; ``prompt`` and ``prefix`` learnt vectors;
``rank`` the middle of a low-rank product and ``column`` the middle with its gates; ``gate``;
``input`` and ``output`` widths of a linear layer or a head; ``head`` and ``size`` the attention's
heads and their width; ``key`` what a query sees. Signatures with them are checked in tests only.
"""

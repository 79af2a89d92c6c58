"""How many adapters are run at once: engine, batcher, residency, gRPC and HTTP edges, client.

service -> engine -> batcher -> runner. Importing this package, or its client, loads no torch.
"""

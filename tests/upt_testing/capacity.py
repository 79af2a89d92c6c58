"""Costs of a server that nobody measured, round enough to reckon with."""

from upt_server.capacity.costs import BatchCosts, Costs

BATCH = BatchCosts(fixed_s=0.001, row_s=1e-4, token_s=5e-5, adapter_s=1e-4)
COSTS = Costs(
    machine="paper",
    cores=1,
    date="2026-01-01",
    backbone="none",
    runner="none",
    batch=BATCH,
    alone_s=0.0,
    together_s=0.0,
    call_s=5e-4,
    edge_s=2e-3,
    load_s=6e-3,
    load_work_s=2e-3,
    handoff_s=1e-3,
    jitter_root_s=(-0.01, 0.0, 0.01),
    prompt_tokens=10,
    adapter_bytes=1_000_000,
    stored_bytes=500_000,
    server_bytes=10_000_000,
    start_s=3.0,
)

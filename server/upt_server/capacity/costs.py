"""What serving costs on one machine, as ``benchmarks/costs.py`` measured it.

In a busy server a batch of r rows, t tokens (prompt vectors among them) and a distinct adapters
takes

    seconds(r, t, a) = fixed + row · r + token · t + adapter · a
"""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from upt_zoo.errors import DataNotFound, InvalidInput
from upt_zoo.reasons import first_reason

Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Jitter = Annotated[float, Field(allow_inf_nan=False)]
_MEASURED = "costs.json"
APART_S = 0.001  # calls that follow each other sooner come together


class BatchCosts(BaseModel):
    """Seconds of the runner: a batch, and each row, token and distinct adapter of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    fixed_s: Cost
    row_s: Cost
    token_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    adapter_s: Cost

    def seconds(self, *, rows: int, tokens: int, adapters: int) -> float:
        """Return how long a batch takes."""
        return self.fixed_s + self.row_s * rows + self.token_s * tokens + self.adapter_s * adapters


class RouterCosts(BaseModel):
    """What replicas take that share one machine with their router and their callers: CPU seconds.

    ``batch`` is what a replica's batches take of a core there, and ``round_s`` what each of them
    takes of the event loops, however many calls it answers. A call takes ``caller_s``, ``proxy_s``
    and ``replica_s`` of the loops that it passes twice, there and back; on its way pass ``way_s``
    in which nobody computes. Whether or not anybody asks, ``idle_cores`` are taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    batch: BatchCosts
    round_s: Cost
    caller_s: Cost
    proxy_s: Cost
    replica_s: Cost
    way_s: Cost
    idle_cores: Cost


class Costs(BaseModel):
    """One server on one machine, in seconds and bytes.

    ``batch`` is what a batch takes that no call comes beside, where callers, event loop and runner
    share the cores. A call that comes while a batch is computed, more than ``APART_S`` after the
    one before, makes the batch ``alone_s`` longer, at most by what is left of it: it takes a core
    from it. One that comes sooner makes that batch, or the next one, ``together_s`` longer: the
    loop is at work already. From the end of a batch to the start of the next one pass
    ``handoff_s``, and ``call_s`` for each call that it answers: the event loop turns to them before
    the runner has the interpreter again. To let a call in is taken to be as long, and so is the
    start of a runner that was idle (``handoff_s``). ``edge_s`` is what a call waits beyond queue
    and batch, from when it was due, while few calls come. Reading an adapter takes ``load_s``, of
    which the runner loses ``load_work_s``. ``jitter_root_s`` holds evenly spaced quantiles of what
    a batch takes longer or shorter, by the square root of its seconds, with a mean of 0 and without
    the least and the most half percent: disturbances come at random times, and in a long batch they
    even out. A row is ``prompt_tokens`` longer than its text. An adapter takes ``adapter_bytes`` in
    memory and ``stored_bytes`` on disk. A server without adapters takes ``server_bytes`` and is
    ready after ``start_s``. ``router`` None: a router takes nothing, and each server has a machine
    of its own; else those costs stand for ``batch`` and for what calls take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    machine: str
    cores: Annotated[int, Field(ge=1)]
    date: str
    backbone: str
    runner: str
    batch: BatchCosts
    alone_s: Cost
    together_s: Cost
    call_s: Cost
    handoff_s: Cost
    edge_s: Cost
    load_s: Cost
    load_work_s: Cost
    jitter_root_s: Annotated[tuple[_Jitter, ...], Field(min_length=2)]
    prompt_tokens: Annotated[int, Field(ge=0)]
    adapter_bytes: Annotated[int, Field(gt=0)]
    stored_bytes: Annotated[int, Field(gt=0)]
    server_bytes: Annotated[int, Field(gt=0)]
    start_s: Cost
    router: RouterCosts | None = None


def read_costs(file: Path | None = None) -> Costs:
    """Read costs from a file, or those that upt was shipped with.

    Raises:
        DataNotFound: there is no such file.
        InvalidInput: it holds no costs.
    """
    source = files("upt_server.capacity") / _MEASURED if file is None else file
    try:
        return Costs.model_validate_json(source.read_bytes())
    except FileNotFoundError as error:
        raise DataNotFound(f"no file {source}: benchmarks/costs.py --out writes one") from error
    except ValidationError as error:
        raise InvalidInput(
            f"{source}: expected costs as benchmarks/costs.py --out writes them, got others; "
            f"measure them again: {first_reason(error)}"
        ) from error

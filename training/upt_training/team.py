"""The processes that do a run together, each on a device of its own.

Mostly it is one. ``torchrun`` starts several on one machine: each has all weights, computes the
gradients of its share of a step's rows and adds those of the others.
"""

import importlib
import json
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import TypeVar

import torch
from torch import Tensor, distributed

from upt_zoo.errors import InvalidInput, InvalidSpec, Unavailable
from upt_zoo.nn.devices import missing_device

_PATIENCE = timedelta(days=1)  # one of them evaluates while the others wait
_LAST_WORDS_S = 10  # then a process that failed is gone, and torchrun ends the others
_SEED_BITS = 63
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_Row = TypeVar("_Row")
_Agreed = TypeVar("_Agreed", bound=str | float | Mapping[str, float] | None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """``size`` processes of which this one is ``rank``; ``device`` is torch's name for its own."""

    device: str = "cpu"
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that decides, writes and reports."""
        return self.rank == 0

    def check_device(self) -> None:
        """Check that torch can compute where this process has to.

        Raises:
            InvalidInput: it cannot.
        """
        if not _DEVICE.fullmatch(self.device):
            raise InvalidInput(f"--device: expected cpu, cuda or cuda:NUMBER, got {self.device!r}")
        missing = missing_device(self.device)
        if missing is not None:
            raise InvalidInput(f"--device: {missing}")

    @contextmanager
    def fitting(self, rows: int) -> Iterator[None]:
        """Compute what takes the device's memory, above all so many ``rows`` at once.

        Raises:
            InvalidSpec: there is too little of it.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise InvalidSpec(
                f"rows_at_once: expected as many rows as fit into the memory of {self.device}, "
                f"{rows} do not; set fewer"
            ) from error

    def share_of(self, batch: Sequence[_Row]) -> Sequence[_Row]:
        """Return this process's rows of a batch, every ``size``-th one; there may be none."""
        return batch[self.rank :: self.size]

    def align(self, weights: Mapping[str, Tensor], standing: str) -> None:
        """Overwrite the weights with the first process's; all have to stand at the same place.

        Raises:
            Unavailable: they do not.
        """
        if self.agree(standing) != standing:
            raise Unavailable(
                "torchrun: expected all processes to go on from the same checkpoint in the same "
                "precision; name the precision in the recipe, and start again"
            )
        if self.size > 1:
            with torch.no_grad(), _together():
                for weight in weights.values():
                    distributed.broadcast(weight.detach(), src=0)

    def add_up(self, weights: Mapping[str, Tensor], loss: float) -> float:
        """Overwrite all gradients with their sum over the processes, and return that of the loss.

        A weight without a gradient has none in any process.
        """
        if self.size == 1:
            return loss
        total = torch.tensor(loss, dtype=torch.float64)
        gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
        with _together():
            sums = [distributed.all_reduce(each, async_op=True) for each in (total, *gradients)]
            for each in sums:
                each.wait()
        return float(total)

    def agree(self, value: _Agreed) -> _Agreed:
        """Return the first process's value; nobody goes on before it has one."""
        if self.size == 1:
            return value
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor(len(data))
        with _together():
            distributed.broadcast(length, src=0)
            if not self.leads:
                data = torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(data, src=0)
        agreed: _Agreed = json.loads(bytes(data.tolist()))
        return agreed

    def seed(self, seed: int, step: int) -> None:
        """Let a step's chance depend on the seed, the step and the process alone.

        A process alone on the CPU draws on from step to step instead, since its checkpoints hold
        the state of the only generator that there is.
        """
        if self.size > 1 or self.device != "cpu":
            torch.manual_seed(Random(f"{seed}/{step}/{self.rank}").getrandbits(_SEED_BITS))


ALONE = Team()


def alone_on(device: str) -> Team:
    """Return the team of this process, for what several cannot share.

    Raises:
        InvalidInput: torchrun has started several.
    """
    if distributed.is_torchelastic_launched():
        raise InvalidInput("torchrun: expected `upt-train run`, other commands are one process")
    return Team(device=device)


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """Be one of the processes that torchrun has started, or the only one.

    Each of several takes the ``cuda`` device of its own number.

    Raises:
        InvalidInput: the device is missing, or the processes are not all on this machine.
    """
    if not distributed.is_torchelastic_launched():
        yield Team(device=device)
        return
    # first imported beside a group, as an optimiser does, this keeps the group's threads for ever
    importlib.import_module("torch.distributed.nn")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device not in ("cpu", "cuda"):
        raise InvalidInput(f"torchrun: expected --device cpu or cuda, got {device!r}")
    if int(os.environ["LOCAL_WORLD_SIZE"]) != size:
        raise InvalidInput("torchrun: expected all processes on one machine; leave --nnodes out")
    own = f"cuda:{rank}" if device == "cuda" else device
    team = Team(device=own, rank=rank, size=size)
    team.check_device()
    if own != "cpu":
        torch.cuda.set_device(own)
    backend = "gloo" if own == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield team
    except BaseException:
        # the others wait for this process; so would it for them, if it ended its part of the group
        signal.alarm(_LAST_WORDS_S)
        raise
    distributed.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Do what all processes have to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Unavailable(
            f"torchrun: expected the other processes; if one has ended, what it said is the "
            f"reason ({str(error).splitlines()[0]})"
        ) from error

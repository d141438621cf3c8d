"""Distributed fits: each process takes its rows of every batch, and gradients are those of the whole batch.

Shapes: B rows of a batch, W processes (workers), process r takes rows r, r + W, r + 2W, ... of the batch.

    loss of a step = - (1 / M) sum over processes, over their answer tokens, of log q       M tokens of the whole step

DDP and FSDP2 average gradients over processes, so each process's part of the loss is multiplied by W.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from hydrometer.core.errors import FitError
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.opened import OpenedLM, pick_device

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.spec import Training

__all__ = ["PATIENCE", "Distributed", "Loss", "group", "join_group", "lost_peer"]

Loss = Callable[[OpenedLM, Tensor, Tensor, float], Tensor]
"""Maps model, ids, labels and the step's number of answer tokens to the loss of these rows."""

PATIENCE = timedelta(days=7)
"""Timeout of collectives: others wait while rank 0 scores held-out rows; a dead process is noticed at once."""


@contextlib.contextmanager
def group(device: str, rank: int, n_workers: int, meeting: Path) -> Generator[None]:
    """Join a process group on this machine, with gloo, or nccl on cuda."""
    on_cuda = pick_device(device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(rank)
    # No file:// URL: torch does not unquote its path, and hangs if a folder's name has a space.
    store = dist.FileStore(str(meeting), n_workers)  # pyright: ignore[reportPrivateImportUsage]
    store.set_timeout(PATIENCE)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=n_workers, timeout=PATIENCE
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def lost_peer(error: RuntimeError) -> bool:
    """Whether an error means that another process of the group is gone; gloo's error has no type of its own."""
    return dist.is_initialized() and (
        isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
    )


class Distributed:
    """A model trained by this process group.

    Parameters
    ----------
    lm : the whole model, equal in every process; rank 0's is judged and stored.
    loss : of rows.

    Attributes
    ----------
    rank, size : of this process, and W.
    trained : the optimised model: `lm` itself, or its sharded copy.
    module : called by the loop with ids, labels and the step's number of answer tokens; gives this process's part of
        the loss.
    """

    def __init__(self, lm: CausalLM, strategy: Literal["ddp", "fsdp"], loss: Loss) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.lm, self.sharded = lm, strategy == "fsdp"
        self.trained = CausalLM(copy.deepcopy(lm.model), lm.tokenizer) if self.sharded else lm
        part = _Part(self.trained, loss, self.size)
        self.module: nn.Module = _sharded(part, lm.device) if self.sharded else _replicated(part, lm.device)

    def gather(self) -> None:
        """Copy the trained weights to rank 0's `lm`. Called by all."""
        if not self.sharded:
            return
        whole: dict[str, Tensor] = {}
        for name, value in self.trained.model.state_dict().items():
            full = value.full_tensor() if hasattr(value, "full_tensor") else value
            if self.rank == 0:
                whole[name] = full.detach()
        if self.rank == 0:
            self.lm.model.load_state_dict(whole)

    def loader(
        self, data: Dataset[Any], collate: Callable[..., dict[str, Tensor]], batch: int, seed: int
    ) -> DataLoader[Any]:
        """Load this process's rows of the batches of a single process."""
        rows = _Rows(data, batch, seed, self.rank, self.size)
        return _Loader(data, batch_sampler=rows, collate_fn=collate)

    def mean(self, value: Tensor | float) -> Tensor:
        """Return the mean over the processes of the group. Called by all."""
        total = torch.as_tensor(value, dtype=torch.float32, device=self.lm.device).clone()
        dist.all_reduce(total)
        return total / self.size

    def barrier(self) -> None:
        """Wait for all processes of the group; a broadcast does not block its source."""
        dist.barrier()

    def broadcast(self, value: object) -> Any:
        """Return rank 0's value in every process."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def join_group(lm: CausalLM, training: Training, loss: Loss) -> Distributed | None:
    """Return the model as this process group trains it; None for a fit of one process.

    Raises
    ------
    FitError : the fit needs several processes, and this one is in no such group.
    """
    if training.num_workers == 1:
        return None
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size != training.num_workers:
        what = "a fit of several workers is made by `hydrometer run`, which starts them"
        raise FitError(what, got=f"{size} of {training.num_workers}", fix="set num_workers: 1 to fit in this process")
    return Distributed(lm, training.strategy, loss)


class _Part(nn.Module):
    """The process's part of the loss, as a module whose forward triggers the exchange of gradients."""

    def __init__(self, lm: CausalLM, loss: Loss, size: int) -> None:
        super().__init__()
        self.model = lm.model
        self._lm, self._loss, self._size = lm, loss, size

    def forward(self, input_ids: Tensor, labels: Tensor, n_items: float) -> Tensor:
        return self._loss(self._lm, input_ids, labels, n_items) * self._size


def _replicated(part: nn.Module, device: torch.device) -> nn.Module:
    own = [device] if device.type == "cuda" else None
    # A process without an answer token in a batch uses only part of the network.
    return nn.parallel.DistributedDataParallel(part, device_ids=own, find_unused_parameters=True)


def _sharded(part: _Part, device: torch.device) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    n_layers = int(part.model.config.get_text_config().num_hidden_layers)
    for module in part.model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            for layer in module:
                fully_shard(layer, mesh=mesh)
    # Embeddings, final norm and head stay gathered through the root's forward, where the loss reads the head's matrix.
    whole: Any = fully_shard(part, mesh=mesh, reshard_after_forward=False)
    return whole


class _Rows(Sampler[list[int]]):
    """The process's rows of each batch, in the order of a single process.

    If a batch has fewer rows than processes, the others get an uncounted row, encoded as -1 - row, and so join every
    exchange.
    """

    def __init__(self, data: Dataset[Any], batch: int, seed: int, rank: int, size: int) -> None:
        # The sampler of accelerate for a single process.
        self.order = SeedableRandomSampler(data_source=data, generator=torch.Generator(), data_seed=seed)
        self.n, self.batch, self.rank, self.size = len(data), batch, rank, size  # pyright: ignore[reportArgumentType]

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for at in range(0, self.n, self.batch):
            rows = order[at : at + self.batch]
            yield rows[self.rank :: self.size] or [-1 - rows[0]]

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch)


class _Loader(DataLoader[Any]):
    """Passes the epoch to the sampler."""

    def set_epoch(self, epoch: int) -> None:
        rows: Any = self.batch_sampler
        rows.set_epoch(epoch)

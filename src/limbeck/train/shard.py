"""FSDP2: the student's weights, gradients and optimizer state lie in shards, one a process.

Training forwards gather a layer's weights when they come to it. Whatever else runs the student (samples, a self
teacher, evaluations, saving) runs a plain twin of it, which has weights only inside a phase, `with whole():`. They are
gathered once a phase and not once a token, and ranks may go through unequal numbers of forwards in there.

torch's `fully_shard` is called here and accelerate's plugin is not used: on a CPU it is ignored. Embedding, final norm
and head are in the root's group: the loss runs the head inside the root's forward, and a tied head is one weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from limbeck.errors import ConfigError
from limbeck.models import unwrap
from limbeck.train.student import StudentStep

# The student with whole weights, for a phase. Every rank must come by. only_main: the other ranks help to gather and
# keep nothing. device: where the weights are put, by default where they are trained.
Whole = Callable[..., AbstractContextManager[StudentStep]]


def unsharded(student: StudentStep) -> Whole:
    """Of a student whose weights are whole anyway."""

    @contextmanager
    def whole(*, only_main: bool = False, device: torch.device | str | None = None) -> Iterator[StudentStep]:
        yield student

    return whole


class Gathered:
    """`Whole` of a sharded student. Inside another phase it is that phase: nothing is gathered twice."""

    def __init__(self, sharded: StudentStep, twin: StudentStep, accelerator: Accelerator) -> None:
        self.sharded, self.twin, self.accelerator = sharded, twin, accelerator
        self.inside = False

    @contextmanager
    def __call__(self, *, only_main: bool = False, device: torch.device | str | None = None) -> Iterator[StudentStep]:
        if self.inside:
            yield self.twin
            return
        self.inside = True
        try:
            self._gather(keep=self.accelerator.is_main_process or not only_main, device=device)
            yield self.twin
        finally:
            for parameter in self.twin.parameters():
                parameter.data = _nothing(parameter, self.accelerator.device)
            self.inside = False

    @torch.no_grad()
    def _gather(self, *, keep: bool, device: torch.device | str | None) -> None:
        for module in self.sharded.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # after a forward without a backward, such as one whose loss was not finite
        for own, shard in zip(self.twin.parameters(), self.sharded.parameters(), strict=True):
            assert isinstance(shard, DTensor)
            weight = shard.full_tensor()
            if keep:
                own.data = weight if device is None else weight.to(device)


def shard(student: StudentStep, accelerator: Accelerator) -> tuple[StudentStep, Whole]:
    """Shards in place, every decoder layer and the rest a group each; returns the student and its `Whole`.

    Every rank must have the same weights. Gradients are averaged over ranks, as DDP's are. Raises ConfigError where
    there is one process only.
    """
    if accelerator.num_processes == 1:
        raise ConfigError(
            "there is one process, and nothing to shard over",
            where="--fsdp fsdp2",
            fix="start several: torchrun --nproc_per_node 2 -m limbeck.cli.main ..., or leave --fsdp out",
        )
    twin = _hollow_copy(student).to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in layers(student.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(student, mesh=mesh)
    if accelerator.mixed_precision != "no":  # what accelerate does to a module that it prepares
        for module in (student, twin):
            module.forward = accelerator.autocast()(module.forward)
    return student, Gathered(student, twin, accelerator)


def layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, by the classes that transformers keeps on one device."""
    whole = set(unwrap(model)._no_split_modules or ())
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [layer for several in lists for layer in several if type(layer).__name__ in whole]


def _hollow_copy(student: StudentStep) -> StudentStep:
    """The same modules, ties and buffers, and parameters without elements."""
    weights = [(parameter, parameter.data) for parameter in student.parameters()]
    try:
        for parameter, weight in weights:
            parameter.data = _nothing(weight, weight.device)
        return copy.deepcopy(student)
    finally:
        for parameter, weight in weights:
            parameter.data = weight


def _nothing(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(0, dtype=like.dtype, device=device)


def local_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with this rank's shards as plain tensors."""
    state = optimizer.state_dict()
    plain = {
        number: {name: v.to_local().clone() if isinstance(v, DTensor) else v for name, v in moments.items()}
        for number, moments in state["state"].items()
    }
    return {**state, "state": plain}


def sharded_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `local_state`, for an optimizer of the same parameters on as many processes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def put(value: Any, like: torch.Tensor) -> Any:
        if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        local = value.to(like.device)
        return DTensor.from_local(local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())

    moments = {
        number: {name: put(value, parameters[number]) for name, value in own.items()}
        for number, own in state["state"].items()
    }
    return {**state, "state": moments}

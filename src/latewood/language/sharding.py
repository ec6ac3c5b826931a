"""Training with weights, gradients and moments spread over several processes (FSDP2)."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from latewood.core.errors import ConfigurationError
from latewood.parts.optimizer_state import OptimizerState


def asked_for() -> bool:
    """Whether ``accelerate launch --use_fsdp --fsdp_version 2`` started this process.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for version 1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigurationError("Latewood shards a model with FSDP version 2; launch it with --fsdp_version 2.")
    return True


class Sharded:
    """``network``, a copy of ``whole``, is trained instead of it: of weights, gradients and moments each process holds a part.

    ``blocks`` are the modules of ``network`` that are put together one at a time. ``whole`` keeps its weights, which are
    needed between arrivals, for scores and for saving, and takes on the trained ones with :meth:`gather`. ``optimizer``
    trains the copy from here on, with the moments that it had.

    All processes must call the same methods in the same order.
    """

    def __init__(self, whole: nn.Module, network: nn.Module, blocks: list[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(next(whole.parameters()).device.type, (torch.distributed.get_world_size(),))
        for module in (*blocks, network):
            fully_shard(module, mesh=mesh)
        self.whole, self.network = whole, network
        trained = dict(network.named_parameters())
        copies = {parameter: trained[name] for name, parameter in whole.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in optimizer.state:
                    held = optimizer.state.pop(parameter)
                    copy = copies[parameter]
                    optimizer.state[copy] = {name: _spread(value, copy) for name, value in held.items()}
            group["params"] = [copies[parameter] for parameter in group["params"]]

    @torch.no_grad()
    def gather(self) -> None:
        """Let ``whole`` take on the trained weights."""
        trained = dict(self.network.named_parameters())
        for name, parameter in self.whole.named_parameters():
            parameter.copy_(_whole(trained[name]))

    def gather_moments(self, state: OptimizerState) -> None:
        """Put what an optimiser's state holds in parts together."""
        for name, value in list(state.named_buffers()):
            setattr(state, name, _whole(value))


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """The part of a moment that belongs to the part of its weight; what is no moment, such as the count of steps, as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if value.shape != like.shape or not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)


def _whole(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value

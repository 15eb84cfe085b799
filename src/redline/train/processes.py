"""Processes: on which device each trains, and where the weights lie: whole, or in shards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from redline.errors import InputError, MissingError
from redline.train.recipe import Recipe


def begin(recipe: Recipe) -> tuple[Any, Recipe]:
    """The accelerator of this process, and the recipe with what the launcher asked for.

    Raises:
        InputError: the device or the precision is not there.
        MissingError: accelerate or safetensors is not installed.
    """
    try:
        import safetensors  # noqa: F401
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import parse_flag_from_env, patch_environment
    except ImportError as error:
        raise MissingError(
            f"{error.name} is not installed", hint='pip install "redline[train]"'
        ) from None
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = recipe.device
    if kind == "auto":
        kind = next((name for name, here in there.items() if here), "cpu")
    if not there.get(kind, True):
        raise InputError(
            f"device {kind!r}: torch sees no such GPU", hint="device='auto', or redline doctor"
        )
    if recipe.precision == "fp16" and kind == "cpu":
        raise InputError("fp16 does not train on a cpu", hint="precision='bf16' or 'fp32'")
    AcceleratorState._reset_state()  # a second fit() may choose another device or precision
    precision = "no" if recipe.precision == "fp32" else recipe.precision
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        recipe = recipe.changed(shard=True)
    if recipe.shard and recipe.precision == "fp16":
        raise InputError("fp16 does not go with shards", hint="precision='bf16' or 'fp32'")
    with patch_environment(ACCELERATE_USE_FSDP="false"):  # the sharding is torch's own, below
        accelerator = Accelerator(cpu=kind == "cpu", mixed_precision=precision)
    torch.use_deterministic_algorithms(recipe.deterministic)
    return accelerator, recipe


class Whole:
    """Every process holds all weights and moments: one process, or DDP."""

    optimizer: Any

    def __init__(self, net: torch.nn.Module) -> None:
        self.net = net

    def take(self) -> tuple[dict[str, torch.Tensor], Any]:
        """All weights, and the optimizer's state. With shards, every process must call it."""
        return self.net.state_dict(), self.optimizer.state_dict()

    def put(self, weights: Mapping[str, torch.Tensor], moments: Any = None) -> None:
        """What take() gave, back."""
        self.net.load_state_dict(weights)
        if moments is not None:
            self.optimizer.load_state_dict(moments)

    def finished(self) -> torch.nn.Module:
        """The trained network, whole, on the cpu, in eval mode."""
        return self.net.cpu().eval()


class Shards(Whole):
    """Each process holds its part of every weight, gradient and moment (FSDP2, `fully_shard`).

    Blocks of a Sequential or ModuleList are gathered one after the other when they are needed.
    """

    def __init__(self, net: torch.nn.Module, accelerator: Any) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.plain = copy.deepcopy(net).cpu()
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for block in _blocks(net):
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
        super().__init__(net)

    def take(self) -> tuple[dict[str, torch.Tensor], Any]:
        from torch.distributed.checkpoint import state_dict as states

        options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Any
        weights, moments = states.get_state_dict(self.net, self.optimizer, options=options)
        return weights, moments

    def put(self, weights: Mapping[str, torch.Tensor], moments: Any = None) -> None:
        from torch.distributed.checkpoint import state_dict as states

        options = states.StateDictOptions(full_state_dict=True)
        states.set_model_state_dict(self.net, dict(weights), options=options)
        if moments is not None:
            states.set_optimizer_state_dict(self.net, self.optimizer, moments, options=options)

    def finished(self) -> torch.nn.Module:
        from torch.distributed.checkpoint import state_dict as states

        # Every process gets them: with cpu_offload only the first would.
        options = states.StateDictOptions(full_state_dict=True)
        weights: dict[str, Any] = dict(states.get_model_state_dict(self.net, options=options))
        self.plain.load_state_dict({name: value.cpu() for name, value in weights.items()})
        return self.plain.eval()


def _blocks(net: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The members of the outermost containers that hold parameters."""
    for child in net.children() if not isinstance(net, torch.nn.Sequential) else [net]:
        if isinstance(child, torch.nn.Sequential | torch.nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)

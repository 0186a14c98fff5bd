"""BatchNorm over the batches of all processes; torch's own is for GPUs only."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedBatchNorm(nn.Module):
    """Stands for a BatchNorm layer in training; its parameters and buffers keep their names in a state dict."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = layer.eps, layer.momentum
        self.weight, self.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, ...]`, of the same size in every process."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        axes, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        wide = x.float()
        mean = _total(wide.sum(axes)) / count
        centred = wide - mean.reshape(shape)
        variance = _total(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked.item()) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), share)
        normal = centred * torch.rsqrt(variance + self.eps).reshape(shape)
        if self.weight is not None:
            normal = normal * self.weight.reshape(shape) + self.bias.reshape(shape)
        return normal.to(x.dtype)


def _total(tensor: Tensor) -> Tensor:
    """Sum over all processes; its gradient is summed over them too."""
    found: Tensor = all_reduce(tensor)  # type: ignore[no-untyped-call]
    return found


def synced(module: nn.Module) -> nn.Module:
    """A copy of a student whose BatchNorm layers see the batches of all processes."""
    copied = copy.deepcopy(module)
    if isinstance(copied, _BatchNorm):
        return SyncedBatchNorm(copied)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, SyncedBatchNorm(child))
    return copied

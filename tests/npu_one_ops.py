"""One-op models at and beyond each limit of the rules of Ethos-U NPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.npu_agreement import Case, image, random, rows

X, V, W = (random(1, 8, 16, 16),), (random(1, 8, 16),), (random(1, 4, 8, 16),)
TWO, BATCH = (random(1, 8, 16), random(1, 8, 16)), (random(2, 8, 16),)
DEEP = (random(1, 2, 3, 4, 5),)
IDS = torch.zeros(1, 8, dtype=torch.long)

PRODUCTS: dict[str, Case] = {
    "conv": (nn.Conv2d(8, 16, 3, padding=1), X),
    "conv_stride_3": (nn.Conv2d(8, 8, 3, stride=3), X),
    "conv_stride_4": (nn.Conv2d(8, 8, 4, stride=4), X),
    "conv_65_high": (nn.Conv2d(2, 4, (65, 1)), (random(1, 2, 80, 4),)),
    "conv_dilated": (nn.Conv2d(8, 8, 3, dilation=2, stride=2), X),
    "conv_grouped": (nn.Conv2d(8, 8, 3, groups=2), X),
    "conv_batch": (nn.Conv2d(8, 8, 3), (random(2, 8, 16, 16),)),
    "conv_same": (nn.Conv2d(8, 8, 3, padding="same"), X),
    "conv_reflect": (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), X),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), X),
    "depthwise_stride_4": (nn.Conv2d(8, 8, 4, stride=4, groups=8), X),
    "conv1d": (nn.Conv1d(8, 16, 3), V),
    "depthwise1d": (nn.Conv1d(8, 8, 3, groups=8, padding=2), V),
    "conv3d": (nn.Conv3d(2, 4, 3), (random(1, 2, 4, 8, 8),)),
    "transposed": (nn.ConvTranspose2d(8, 8, 2, 2), X),
    "transposed_3": (nn.ConvTranspose2d(8, 8, 3, 3), X),
    "linear": (nn.Linear(16, 32), V),
    "linear_4d": (nn.Linear(16, 8), W),
    "matmul": (torch.matmul, (random(1, 4, 8, 16), random(1, 4, 16, 8))),
    "matmul_5d": (torch.matmul, (random(1, 2, 4, 8, 16), random(1, 2, 4, 16, 8))),
    "bmm": (torch.bmm, (random(4, 8, 16), random(4, 16, 8))),
    "einsum": (lambda a, b: torch.einsum("bchq,bkhc->bkhq", a, b), (random(1, 16, 1, 8), random(1, 6, 1, 16))),
    "attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), (random(1, 4, 8, 16),) * 3),
}
ACTIVATIONS: dict[str, Case] = {
    **{
        f"{kind.__name__}_{where.__name__}": (where(kind()), given)
        for kind in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU,
                     nn.SiLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.Softplus, nn.Mish, nn.PReLU)
        for where, given in ((image, X), (rows, V))
    },
    "gelu_tanh": (nn.GELU("tanh"), V),
    "glu": (rows(nn.GLU()), V),
    "relu6_alone": (F.relu6, V),
    "hardtanh_alone": (F.hardtanh, V),
    "relu6_after_sum": (lambda a, b: F.relu6(a + b), TWO),
    "relu6_after_pool": (image(nn.Sequential(nn.AvgPool2d(2), nn.ReLU6())), X),
    "clamp_0_6": (image(lambda a: a.clamp(0, 6)), X),
    "clamp_1_1": (rows(lambda a: a.clamp(-1, 1)), V),
    "clamp_0_1": (rows(lambda a: a.clamp(0, 1)), V),
    "clamp_1_2": (rows(lambda a: a.clamp(-1, 2)), V),
    "clamp_low": (rows(lambda a: a.clamp(min=0.5)), V),
    "clamp_high": (rows(lambda a: a.clamp(max=0.5)), V),
    "clamp_min": (rows(lambda a: a.clamp_min(0.5)), V),
}  # fmt: skip
ARITHMETIC: dict[str, Case] = {
    "add": (torch.add, TWO),
    "add_spread": (torch.add, (random(1, 8, 16), random(1, 1, 16))),
    "add_5d": (torch.add, DEEP * 2),
    "add_constant": (rows(lambda a: a + 1.5), V),
    "sub": (torch.sub, TWO),
    "one_minus": (rows(lambda a: 1 - a), V),
    "mul": (torch.mul, TWO),
    "mul_channels": (torch.mul, (random(1, 8, 16, 16), random(1, 8, 1, 1))),
    "neg": (rows(torch.neg), V),
    "div": (lambda a, b: a / (b * b + 1), TWO),
    "div_constant": (lambda a: a / 3.0, V),
    "reciprocal": (rows(lambda a: (a * a + 1).reciprocal()), V),
    "square": (rows(torch.square), V),
    "pow_2": (rows(lambda a: a**2), V),
    "pow_3": (rows(lambda a: a**3), V),
    "rsqrt": (rows(lambda a: (a * a + 1).rsqrt()), V),
    "sqrt": (rows(lambda a: (a * a + 1).sqrt()), V),
    **{each.__name__: (rows(each), V) for each in (torch.exp, torch.abs, torch.cos, torch.sin, torch.erf, torch.floor)},
    "log": (rows(lambda a: (a * a + 1).log()), V),
    "maximum": (torch.maximum, TWO),
    "minimum": (torch.minimum, TWO),
    "masked_fill": (lambda a, ids: a.masked_fill(ids[:, :, None] == 0, -10.0), (random(1, 8, 16), IDS)),
    "compare": (lambda a: (a > 0) * a, V),
    "where": (lambda a, ids: torch.where(ids[:, :, None] == 0, a, -10.0), (random(1, 8, 16), IDS)),
    "logic": (
        lambda a, ids: torch.where((ids[:, :, None] == 0) & (ids[:, :, None] != 3), a, -10.0),
        (random(1, 8, 16), IDS),
    ),
    "view_of_truth_values": (lambda a, ids: torch.where((ids == 0)[:, :, None], a, -10.0), (random(1, 8, 16), IDS)),
    "cast": (lambda a, ids: a * ids[:, :, None].float(), (random(1, 8, 16), IDS)),
    "tril": (rows(torch.tril), (random(1, 16, 16),)),
}
REDUCTIONS: dict[str, Case] = {
    "mean_last": (rows(lambda a: a.mean(-1)), V),
    "mean_last_batch": (rows(lambda a: a.mean(-1)), BATCH),
    "mean_last_4d": (rows(lambda a: a.mean(-1, keepdim=True)), W),
    "mean_rows": (rows(lambda a: a.mean(1)), V),
    "mean_rows_batch": (rows(lambda a: a.mean(1)), BATCH),
    "mean_4d": (rows(lambda a: a.mean((1, 2))), W),
    "mean_image": (image(lambda a: a.mean((2, 3))), X),
    "mean_image_kept": (image(lambda a: a.mean((2, 3), keepdim=True)), X),
    "mean_image_channels": (image(lambda a: a.mean(1, keepdim=True)), X),
    "mean_image_batch": (image(nn.AdaptiveAvgPool2d(1)), (random(2, 8, 16, 16),)),
    "mean_5d": (lambda a: a.mean((3, 4)), DEEP),
    "sum": (rows(lambda a: a.sum(-1)), V),
    "sum_4d": (rows(lambda a: a.sum(-1)), W),
    "amax": (rows(lambda a: a.amax(-1)), V),
    "var": (rows(lambda a: a.var(-1)), V),
    "var_4d": (rows(lambda a: a.var(-1)), W),
    "cumsum": (rows(lambda a: a.cumsum(1)), V),
    "norm": (rows(lambda a: F.normalize(a, dim=-1)), V),
    "layer_norm": (rows(nn.LayerNorm(16)), V),
    "layer_norm_batch": (nn.LayerNorm(16), BATCH),
    "layer_norm_4d": (nn.LayerNorm(16), W),
    "layer_norm_4096": (nn.LayerNorm(4096), (random(1, 4, 4096),)),
    "layer_norm_4097": (nn.LayerNorm(4097), (random(1, 4, 4097),)),
    "rms_norm": (nn.RMSNorm(16), V),
    "rms_norm_4d": (nn.RMSNorm(16), W),
    "group_norm": (image(nn.GroupNorm(2, 8)), X),
    "instance_norm": (image(nn.InstanceNorm2d(8)), X),
    "batch_norm": (nn.BatchNorm2d(8), X),
    "batch_norm_behind": (image(nn.BatchNorm2d(8)), X),
    "softmax": (nn.Softmax(-1), W),
    "softmax_rows": (nn.Softmax(1), V),
    "softmax_65536": (nn.Softmax(-1), (random(1, 16, 4096, 2),)),
    "softmax_65552": (nn.Softmax(-1), (random(1, 16, 4097, 2),)),
    "softmax_5d": (nn.Softmax(-1), DEEP),
    "log_softmax": (nn.LogSoftmax(-1), V),
}
IMAGES: dict[str, Case] = {
    "avg_pool": (image(nn.AvgPool2d(2)), X),
    "avg_pool_padded": (image(nn.AvgPool2d(3, 1, 1)), X),
    "avg_pool_9_inside": (image(nn.AvgPool2d(9, 1, 4, count_include_pad=False)), X),
    "avg_pool_7_inside": (image(nn.AvgPool2d(7, 1, 3, count_include_pad=False)), X),
    "avg_pool_9": (image(nn.AvgPool2d(9, 1)), X),
    "avg_pool_5_by_5": (image(nn.AvgPool2d(5, 5)), X),
    "avg_pool_257": (image(nn.AvgPool2d((257, 1), 1)), (random(1, 8, 300, 2),)),
    "avg_pool_1d": (nn.AvgPool1d(2), V),
    "max_pool": (image(nn.MaxPool2d(3, 2, 1)), X),
    "max_pool_4": (image(nn.MaxPool2d(4)), X),
    "max_pool_257": (image(nn.MaxPool2d((257, 1), 1)), (random(1, 8, 300, 2),)),
    "max_pool_1d": (nn.MaxPool1d(2), V),
    "pool_to_1": (image(nn.AdaptiveAvgPool2d(1)), X),
    "pool_to_4": (image(nn.AdaptiveAvgPool2d(4)), X),
    "pool_to_3": (image(nn.AdaptiveAvgPool2d(3)), X),
    **{f"nearest_{by}": (image(nn.Upsample(scale_factor=by)), (random(1, 8, 4, 4),)) for by in (2, 3, 8, 16)},
    **{f"bilinear_{by}": (image(nn.Upsample(scale_factor=by, mode="bilinear")), X) for by in (2, 3, 4)},
    "bilinear_corners": (image(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)), X),
    "bicubic": (image(nn.Upsample(scale_factor=2, mode="bicubic")), (random(1, 8, 4, 4),)),
    "pixel_shuffle": (image(nn.PixelShuffle(2)), X),
    "pixel_unshuffle": (image(nn.PixelUnshuffle(2)), X),
    "channel_shuffle": (image(nn.ChannelShuffle(2)), X),
    "pad": (image(nn.ZeroPad2d(1)), X),
    "pad_reflected": (image(nn.ReflectionPad2d(1)), X),
    "unfold": (image(nn.Unfold(3)), X),
    "squeeze_excite": (image(lambda a: a * torch.sigmoid(a.mean((2, 3), keepdim=True))), X),
}
MOVES: dict[str, Case] = {
    "transpose": (rows(lambda a: a.transpose(1, 2)), V),
    "permute_5d": (lambda a: a.permute(0, 2, 4, 1, 3), DEEP),
    "permute_6d": (lambda a: a.permute(0, 2, 4, 1, 3, 5), (random(1, 2, 4, 8, 6, 3),)),
    "permute_batch": (lambda a: a.permute(1, 0, 2), (random(4, 8, 16),)),
    "windows": (
        lambda a: a.view(1, 2, 8, 2, 8, 4).permute(0, 1, 3, 2, 4, 5).reshape(4, 8, 8, 4),
        (random(1, 16, 16, 4),),
    ),
    "cat": (lambda a, b: torch.cat([a, b], 1), TWO),
    "cat_5d": (lambda a, b: torch.cat([a, b], 1), DEEP * 2),
    "stack": (lambda a, b: torch.stack([a, b], 1), TWO),
    "split": (lambda a: torch.cat([part * by for part, by in zip(a.split(4, 1), (1.0, 2.0), strict=True)], 1), V),
    "unbind": (lambda a: sum(part * by for part, by in zip(a.unbind(1), (1.0, 2.0), strict=True)), (random(1, 2, 16),)),
    "slice": (rows(lambda a: a[:, 2:5]), V),
    "slice_every_other": (rows(lambda a: a[:, ::2]), V),
    "slice_every_other_last": (rows(lambda a: a[..., ::2]), V),
    "select": (rows(lambda a: a[:, 0]), V),
    "index": (rows(lambda a: a[:, [0, 3, 2]]), V),
    "index_select": (lambda a, i: a.index_select(1, i), (random(1, 8, 16), torch.tensor([0, 3]))),
    "embedding": (nn.Embedding(50, 16), (IDS,)),
    "expand": (rows(lambda a: torch.cat([a[:, :1].expand(1, 4, 16), a], 1)), V),
    "expand_read": (lambda a, b: a.expand(1, 8, 16) + b, (random(1, 1, 16), random(1, 8, 16))),
    "repeat": (rows(lambda a: a.repeat(1, 2, 1)), V),
    "repeat_interleave": (rows(lambda a: a.repeat_interleave(2, 1)), V),
    "roll": (rows(lambda a: a.roll(2, 1)), V),
    "flip": (rows(lambda a: a.flip(1)), V),
    "pad_rows": (rows(lambda a: F.pad(a, (0, 0, 1, 1))), V),
    "pad_value": (rows(lambda a: F.pad(a, (0, 0, 1, 1), value=1.0)), V),
    "unflatten": (rows(lambda a: a.unflatten(-1, (4, 4)).transpose(1, 2)), V),
    "dropout": (rows(nn.Dropout()), V),
}
OTHERS: dict[str, Case] = {
    "amin": (rows(lambda a: a.amin(-1)), V),
    "max": (rows(lambda a: a.max()), V),
    "any": (lambda a, ids: a * (ids == 0).any(1, keepdim=True).float()[:, None], (random(1, 8, 16), IDS)),
    "all": (lambda a, ids: a * (ids == 0).all(1, keepdim=True).float()[:, None], (random(1, 8, 16), IDS)),
    "clamp_max": (rows(lambda a: a.clamp_max(0.5)), V),
    "mm": (torch.mm, (random(8, 16), random(16, 4))),
    "addmm": (torch.addmm, (random(4), random(8, 16), random(16, 4))),
    "baddbmm": (torch.baddbmm, (random(2, 8, 4), random(2, 8, 16), random(2, 16, 4))),
    **{
        name: (lambda a, ids, how=how: torch.where(how(ids[:, :, None]), a, -10.0), (random(1, 8, 16), IDS))
        for name, how in {
            "lower": lambda ids: ids < 3,
            "at_most": lambda ids: ids <= 3,
            "at_least": lambda ids: ids >= 3,
            "and": lambda ids: torch.logical_and(ids < 3, ids > 0),
            "or": lambda ids: torch.logical_or(ids < 3, ids > 5),
            "not": lambda ids: torch.logical_not(ids < 3),
            "bits": lambda ids: (ids < 3) | (ids > 5),
            "inverse": lambda ids: ~(ids < 3),
        }.items()
    },
    "triu": (rows(torch.triu), (random(1, 16, 16),)),
    "mT": (rows(lambda a: a.mT), V),
    "movedim": (rows(lambda a: a.movedim(1, 2)), V),
    "swapaxes": (rows(lambda a: a.swapaxes(1, 2)), V),
    "t": (lambda a: a.t(), (random(8, 16),)),
    "narrow": (rows(lambda a: a.narrow(1, 2, 3)), V),
    "chunk": (lambda a: torch.cat([part * by for part, by in zip(a.chunk(2, 1), (1.0, 2.0), strict=True)], 1), V),
    "split_sizes": (lambda a: torch.cat([p * by for p, by in zip(a.split([3, 5], 1), (1.0, 2.0), strict=True)], 1), V),
    "gather": (lambda a, i: a.gather(1, i), (random(1, 8, 16), torch.zeros(1, 2, 16, dtype=torch.long))),
    "tile": (rows(lambda a: a.tile(1, 2, 1)), V),
    "broadcast": (rows(lambda a: torch.cat([a[:, :1].broadcast_to(1, 4, 16), a], 1)), V),
    "flatten": (image(lambda a: a.flatten(2).transpose(1, 2)), X),
    "squeeze": (rows(lambda a: a[:, :1].squeeze(1)), V),
    "ones_like": (rows(lambda a: torch.cat([a, torch.ones_like(a)], 1)), V),
    "full_like": (rows(lambda a: torch.cat([a, torch.full_like(a, 0.5)], 1)), V),
    "round": (rows(torch.round), V),
    "sign": (rows(torch.sign), V),
    "ceil": (rows(torch.ceil), V),
    "atan": (rows(torch.atan), V),
    "celu": (rows(nn.CELU()), V),
    "log_sigmoid": (rows(nn.LogSigmoid()), V),
    "relu": (F.relu, V),
    "argmin": (rows(lambda a: a.argmin(-1)), V),
    "grid_sampler": (lambda a, grid: F.grid_sample(a, grid, align_corners=False), (X[0], random(1, 4, 4, 2))),
    "lstm": (nn.LSTM(16, 16, batch_first=True), V),
}


def masked(number: float) -> dict[str, Case]:
    """Attention that leaves places out, in each of the ways that models do it: by inputs, and by constants."""
    later = torch.full((8, 8), number).triu(1)
    ways: dict[str, Callable[..., Tensor]] = {
        "where": lambda a, ids: (a @ a.mT + torch.where((ids == 0)[:, None], number, 0.0)).softmax(-1) @ a,
        "fill": lambda a, ids: (a @ a.mT).masked_fill((ids == 0)[:, None], number).softmax(-1) @ a,
        "product": lambda a, ids: (a @ a.mT + (1 - ids[:, None].float()) * number).softmax(-1) @ a,
        "constant": lambda a, ids: (a @ a.mT + later * (ids[:, None] == 0)).softmax(-1) @ a,
        "constant_alone": lambda a, ids: (a @ a.mT + later).softmax(-1) @ a,
    }
    return {name: (way, (random(1, 8, 16), IDS)) for name, way in ways.items()}


GROUPS = {
    "products": PRODUCTS,
    "activations": ACTIVATIONS,
    "arithmetic": ARITHMETIC,
    "reductions": REDUCTIONS,
    "images": IMAGES,
    "moves": MOVES,
    "others": OTHERS,
    "masks_within_a_grid": masked(-1e12),
    "masks_beyond_it": masked(-1e14),
}
NOT_EXPORTED: dict[str, Case] = {
    "topk": (rows(lambda a: a.topk(2).values), V),
    "sort": (rows(lambda a: a.sort(-1).values), V),
    "scaled_dot_product_attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(8, 8, dtype=torch.bool).tril()),
        (random(1, 4, 8, 16),) * 3,
    ),
}
NOT_COMPILED: dict[str, Case] = {
    "argmax": (rows(lambda a: a.argmax(-1)), V),
}
NOT_COMPILED_BELOW_U85: dict[str, Case] = {"conv_stride_4_padded": (nn.Conv2d(8, 8, 4, stride=4, padding=1), X)}

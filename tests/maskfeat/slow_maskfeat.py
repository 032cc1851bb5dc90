"""MaskFeat's arithmetic written out plainly: the oracle of the models, from weights named as SlowFast's.

Nothing here is shared with the package: sums over kernel offsets instead of convolutions, loops over heads and
positions instead of fused attention, boolean selection instead of gathering.
"""

import math

import torch
import torch.nn.functional as F


def layer_norm(x, p, name):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x, p, name):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def mlp(x, p, name):
    hidden = linear(x, p, f"{name}.fc1")
    return linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), p, f"{name}.fc2")


def convolve(x, weight, stride, padding, equation="bc...,oc->bo..."):
    """Correlation of x [B, C, *size] with weight [O, C, *kernel], as a sum over the kernel's offsets.

    With the equation "bc...,co->bc..." it is depthwise, and weight is [C, 1, *kernel].
    """
    sides = [side for pad in reversed(padding) for side in (pad, pad)]
    x = F.pad(x, sides)
    kernel = weight.shape[2:]
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    total = 0
    for offset in torch.cartesian_prod(*[torch.arange(k) for k in kernel]).tolist():
        window = x[(..., *[slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, sizes, stride, strict=True)])]
        total = total + torch.einsum(equation, window, weight[(..., *offset)])
    return total


def hide(tokens, mask, p):
    """Replace masked tokens by the mask token, then put the class token in front."""
    mask = mask.to(tokens.dtype).unsqueeze(-1)
    tokens = tokens * (1 - mask) + p["mask_token"] * mask
    return torch.cat([p["cls_token"].expand(len(tokens), -1, -1), tokens], 1)


def softmax_attention(q, k, v, bias=0.0):
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True) @ v


def vit_features(p, pixels, mask, heads, depths):
    """Outputs of the blocks ``depths``; mask [B, H, W]."""
    size = p["patch_embed.proj.weight"].shape[-1]
    tokens = convolve(pixels, p["patch_embed.proj.weight"], (size, size), (0, 0)).flatten(2).transpose(1, 2)
    x = hide(tokens + p["patch_embed.proj.bias"], mask.flatten(1), p) + p["pos_embed"]
    outputs = []
    for i in range(max(depths) + 1):
        q, k, v = linear(layer_norm(x, p, f"blocks.{i}.norm1"), p, f"blocks.{i}.attn.qkv").chunk(3, -1)
        parts = [softmax_attention(*one) for one in zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True)]
        x = x + linear(torch.cat(parts, -1), p, f"blocks.{i}.attn.proj")
        x = x + mlp(layer_norm(x, p, f"blocks.{i}.norm2"), p, f"blocks.{i}.mlp")
        outputs.append(x)
    return [outputs[depth] for depth in depths]


def pool_tokens(x, grid, weight, stride):
    """Depthwise 3 x 3 x 3 pooling of x [B, 1 + N, d] for one head; the class token stays."""
    picture = x[:, 1:].transpose(1, 2).unflatten(2, grid)
    picture = convolve(picture, weight, stride, (1, 1, 1), equation="bc...,co->bc...")
    return torch.cat([x[:, :1], picture.flatten(2).transpose(1, 2)], 1), tuple(picture.shape[2:])


def position_vectors(p, name, q_grid, k_grid):
    """For every query and key position the sum of the three table rows of their distances, [Nq, Nk, d]."""
    tables = []
    for axis, q_size, k_size in zip("thw", q_grid, k_grid, strict=True):
        table = p[f"{name}.rel_pos_{axis}"]
        length = 2 * max(q_size, k_size) - 1
        if len(table) != length:
            table = F.interpolate(table.T[None], size=length, mode="linear")[0].T
        q_ratio, k_ratio = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
        rows = [
            [table[int(i * q_ratio - j * k_ratio + (k_size - 1) * k_ratio)] for j in range(k_size)]
            for i in range(q_size)
        ]
        tables.append(torch.stack([torch.stack(row) for row in rows]))
    t, h, w = tables
    total = t[:, None, None, :, None, None] + h[None, :, None, None, :, None] + w[None, None, :, None, None, :]
    return total.flatten(0, 2).flatten(1, 3)


def mvit_features(p, pixels, mask, heads, q_strides, kv_strides, depths, dim_mul_in_att=False):
    """Outputs of the blocks ``depths`` and their grids; mask on the grid of the stem, [B, T, H, W]."""
    tokens = convolve(pixels, p["patch_embed.proj.weight"], (2, 4, 4), (1, 3, 3))
    grid = tuple(tokens.shape[2:])
    x = hide(tokens.flatten(2).transpose(1, 2) + p["patch_embed.proj.bias"], mask.flatten(1), p)
    outputs = []
    for i in range(max(depths) + 1):
        name = f"blocks.{i}.attn"
        kv_stride = (1, kv_strides[i], kv_strides[i])
        strides = {"q": (1, q_strides[i], q_strides[i]), "k": kv_stride, "v": kv_stride}
        y = layer_norm(x, p, f"blocks.{i}.norm1")
        parts = []
        for one in zip(*(t.chunk(heads[i], -1) for t in linear(y, p, f"{name}.qkv").chunk(3, -1)), strict=True):
            pooled = []
            for letter, t in zip("qkv", one, strict=True):
                t, t_grid = pool_tokens(t, grid, p[f"{name}.pool_{letter}.weight"], strides[letter])
                pooled.append((layer_norm(t, p, f"{name}.norm_{letter}"), t_grid))
            (q, q_grid), (k, k_grid), (v, _) = pooled
            bias = torch.einsum("bqd,qkd->bqk", q[:, 1:], position_vectors(p, name, q_grid, k_grid))
            residual = torch.cat([torch.zeros_like(q[:, :1]), q[:, 1:]], 1)
            parts.append(softmax_attention(q, k, v, F.pad(bias, (1, 0, 1, 0))) + residual)
        attended = linear(torch.cat(parts, -1), p, f"{name}.proj")
        widens = f"blocks.{i}.proj.weight" in p
        skip = linear(y, p, f"blocks.{i}.proj") if widens and dim_mul_in_att else x
        if q_strides[i] > 1:
            picture = F.max_pool3d(skip[:, 1:].transpose(1, 2).unflatten(2, grid), (1, 3, 3), strides["q"], (0, 1, 1))
            skip = torch.cat([skip[:, :1], picture.flatten(2).transpose(1, 2)], 1)
        x, grid = skip + attended, q_grid
        y = layer_norm(x, p, f"blocks.{i}.norm2")
        skip = linear(y, p, f"blocks.{i}.proj") if widens and not dim_mul_in_att else x
        x = skip + mlp(y, p, f"blocks.{i}.mlp")
        outputs.append((x, grid))
    return [outputs[depth] for depth in depths]


def hog_labels(frames, patch, cell=8):
    """HOG of frames [B, 3, H, W] in float64, as [B, rows, columns, 27 (patch / cell)^2]."""
    x = F.pad(frames.double(), (1, 1, 1, 1), mode="reflect")
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    gx = F.conv2d(x.flatten(0, 1).unsqueeze(1), kernel[None, None]).view_as(frames)
    gy = F.conv2d(x.flatten(0, 1).unsqueeze(1), kernel.T[None, None]).view_as(frames)
    phase = torch.floor(torch.atan2(gx, gy) / math.pi * 9).long() % 9
    votes = F.one_hot(phase, 9) * torch.hypot(gx, gy).unsqueeze(-1)  # [B, 3, H, W, 9]
    cells = votes.unfold(2, cell, cell).unfold(3, cell, cell).sum((-1, -2))  # [B, 3, h, w, 9]
    cells = F.normalize(cells, dim=-1, eps=1e-12).permute(0, 1, 4, 2, 3)
    u = patch // cell
    return cells.unfold(3, u, u).unfold(4, u, u).permute(0, 3, 4, 1, 2, 5, 6).flatten(3)


def predictions(features, mask, p, i=0):
    """The head on the masked tokens of features [B, 1 + N, D]: all (sample, position) pairs in order."""
    normed = layer_norm(features, p, f"pred_head.transforms.{i}.0")[:, 1:]
    return linear(normed[mask.flatten(1)], p, f"pred_head.projections.{i}")


def weights_of(model):
    """The weights of a MaskFeat in float64 under SlowFast's names, each with its own gradient."""
    return {
        name.removeprefix("encoder."): tensor.detach().double().requires_grad_()
        for name, tensor in model.named_parameters()
    }

"""Small SongUNets, DhariwalUNets and ADM U-Nets with weights by formula, in float64: golden.npz and golden.json.

    python make_golden.py OUT      (torch 2.15, numpy)

Written from the published structure (Karras et al. 2022, arXiv:2206.00364, appendix F.1, and the layer lists of its networks;
Dhariwal and Nichol 2021, arXiv:2105.05233; Song et al. 2021, arXiv:2011.13456), with the names that their state dictionaries
have. Weights and inputs follow from their names as in models/diffusers/formula.go, so nothing but results is stored.

golden.json: for every case the config.json, and torch's own float32 error of out and vjp (relative L2). golden.npz: CASE.t,
CASE.class (-1: none), CASE.heun (below), CASE.out, CASE.vjp, the gradient of sum(out * cotangent) with respect to the input. Inputs are
formula(CASE.sample) sqrt(3), cotangents formula(CASE.cotangent) sqrt(3).
CASE.heun, for EDM's networks: Heun's method of Karras et al. (algorithm 1 without churn) on 4 levels, rho 7, and 0, from
formula(CASE.start) sqrt(3) sigma_max, with the preconditioning that the configuration names (table 1 there).
"""
import json
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

M = (1 << 64) - 1


def formula(name, n, scale, shift=0.0):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = (h ^ b) * 0x100000001B3 & M
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float64) / (1 << 23) - 1
    return (shift + scale * u).astype(np.float32)


def fill(net):
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() >= 2:
                v = formula(name, p.numel(), math.sqrt(3 / (p.numel() // p.shape[0])))
            elif name.endswith(".weight"):
                v = formula(name, p.numel(), 0.1, 1)
            else:
                v = formula(name, p.numel(), 0.05)
            p.copy_(torch.from_numpy(v).reshape(p.shape))


def groups(c):
    return max(min(32, c // 4), 1)


def resample(x, taps, up):
    """Depthwise filter of stride 2 in both directions; up is the transpose, four times as strong."""
    f = torch.tensor(taps, dtype=x.dtype)
    f = f / f.sum()
    f = (f[:, None] * f[None, :]).expand(x.shape[1], 1, -1, -1)
    pad = (len(taps) - 1) // 2
    if up:
        return F.conv_transpose2d(x, 4 * f, stride=2, padding=pad, groups=x.shape[1])
    return F.conv2d(x, f, stride=2, padding=pad, groups=x.shape[1])


class Block(nn.Module):
    """The residual block of EDM's networks."""

    def __init__(s, i, o, emb, o_, up=False, down=False, attn=False):
        super().__init__()
        s.o, s.up, s.down, s.shape = o_, up, down, (i, o)
        s.norm0 = nn.GroupNorm(groups(i), i, eps=o_.eps)
        s.conv0 = nn.Conv2d(i, o, 3, padding=1)
        s.affine = nn.Linear(emb, 2 * o if o_.adaptive else o)
        s.norm1 = nn.GroupNorm(groups(o), o, eps=o_.eps)
        s.conv1 = nn.Conv2d(o, o, 3, padding=1)
        if i != o or o_.project and (up or down):
            s.skip = nn.Conv2d(i, o, 1)
        s.heads = 0
        if attn:
            s.heads = o_.heads(o)
            s.norm2 = nn.GroupNorm(groups(o), o, eps=o_.eps)
            s.qkv = nn.Conv2d(o, 3 * o, 1)
            s.proj = nn.Conv2d(o, o, 1)

    def forward(s, x, emb):
        size = (lambda y: resample(y, s.o.taps, s.up)) if s.up or s.down else (lambda y: y)
        short = size(x)
        if hasattr(s, "skip"):
            short = s.skip(short)
        h = s.conv0(size(F.silu(s.norm0(x))))
        e = s.affine(emb)[:, :, None, None]
        if s.o.adaptive:
            a, b = e.chunk(2, 1)
            h = F.silu(s.norm1(h) * (1 + a) + b)
        else:
            h = F.silu(s.norm1(h + e))
        x = (short + s.conv1(h)) * s.o.scale
        if s.heads:
            n, c, hh, w = x.shape
            y = s.qkv(s.norm2(x)).reshape(n, s.heads, c // s.heads, 3, hh * w)
            q, k, v = y[:, :, :, 0], y[:, :, :, 1], y[:, :, :, 2]
            p = (q.transpose(2, 3) @ k / math.sqrt(c // s.heads)).softmax(-1)
            y = (v @ p.transpose(2, 3)).reshape(n, c, hh, w)
            x = (x + s.proj(y)) * s.o.scale
        return x


class Options:
    pass


def halves(net, c, first, everywhere, aux):
    """The encoder and decoder of EDM's networks, as ModuleDicts; aux adds what runs beside them."""
    o, emb, res = net.o, c["model_channels"] * c.get("channel_mult_emb", 4), c["img_resolution"]
    enc, dec, kept, ch = {}, {}, [], c["in_channels"]
    attends = lambda r: r in c["attn_resolutions"]
    for level, m in enumerate(c["channel_mult"]):
        r = res >> level
        if level == 0:
            enc[f"{r}x{r}_conv"] = nn.Conv2d(ch, first, 3, padding=1)
            ch = first
        else:
            enc[f"{r}x{r}_down"] = Block(ch, ch, emb, o, down=True)
            aux(enc, f"{r}x{r}_aux_", level, ch, "enc")
        kept.append(ch)
        for k in range(c["num_blocks"]):
            enc[f"{r}x{r}_block{k}"] = Block(ch, m * c["model_channels"], emb, o, attn=attends(r))
            ch = m * c["model_channels"]
            kept.append(ch)
    last = len(c["channel_mult"]) - 1
    for level in range(last, -1, -1):
        r = res >> level
        if level == last:
            dec[f"{r}x{r}_in0"] = Block(ch, ch, emb, o, attn=True)
            dec[f"{r}x{r}_in1"] = Block(ch, ch, emb, o)
        else:
            dec[f"{r}x{r}_up"] = Block(ch, ch, emb, o, up=True)
        for k in range(c["num_blocks"] + 1):
            out = c["channel_mult"][level] * c["model_channels"]
            dec[f"{r}x{r}_block{k}"] = Block(ch + kept.pop(), out, emb, o, attn=attends(r) and (everywhere or k == c["num_blocks"]))
            ch = out
        aux(dec, f"{r}x{r}_aux_", level, ch, "dec")
    net.enc, net.dec = nn.ModuleDict(enc), nn.ModuleDict(dec)
    return ch


class Song(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.c, s.o = c, Options()
        s.o.eps, s.o.adaptive, s.o.project, s.o.scale, s.o.heads = 1e-6, False, True, math.sqrt(0.5), lambda ch: 1
        s.o.taps = c.get("resample_filter", [1, 1])
        noise, emb = c["model_channels"] * c.get("channel_mult_noise", 1), c["model_channels"] * 4
        s.noise, side = noise, [c["in_channels"]]
        if c.get("embedding_type") == "fourier":
            s.map_noise = nn.Module()
            s.map_noise.freqs = nn.Parameter(torch.zeros(noise // 2))
        if c.get("label_dim"):
            s.map_label = nn.Linear(c["label_dim"], noise)
        s.map_layer0, s.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)

        def aux(d, name, level, ch, half):
            if half == "enc":
                if c.get("encoder_type") == "skip":
                    d[name + "down"] = nn.Identity()
                    d[name + "skip"] = nn.Conv2d(side[0], ch, 1)
                if c.get("encoder_type") == "residual":
                    d[name + "residual"] = nn.Conv2d(side[0], ch, 3)
                    side[0] = ch
            elif c.get("decoder_type") == "skip" or level == 0:
                if c.get("decoder_type") == "skip" and level < len(c["channel_mult"]) - 1:
                    d[name + "up"] = nn.Identity()
                d[name + "norm"] = nn.GroupNorm(groups(ch), ch, eps=1e-6)
                d[name + "conv"] = nn.Conv2d(ch, c["out_channels"], 3, padding=1)

        halves(s, c, c["model_channels"], False, aux)

    def embed(s, t, label):
        half = s.noise // 2
        if hasattr(s, "map_noise"):
            a = t[:, None] * (2 * math.pi * s.map_noise.freqs)
        else:
            a = t[:, None] * (1 / 10000) ** (torch.arange(half, dtype=t.dtype) / (half - 1))
        e = torch.cat([a.sin(), a.cos()], 1)
        if s.c.get("label_dim"):
            one = torch.zeros(len(t), s.c["label_dim"], dtype=t.dtype)
            for i, k in enumerate(label):
                if k >= 0:
                    one[i, k] = 1
            e = e + s.map_label(one * math.sqrt(s.c["label_dim"]))
        return F.silu(s.map_layer1(F.silu(s.map_layer0(e))))

    def forward(s, x, t, label):
        emb, kept, side = s.embed(t, label), [], x
        for name, m in s.enc.items():
            if name.endswith("aux_down"):
                side = resample(side, s.o.taps, False)
            elif name.endswith("aux_skip"):
                x = kept[-1] = x + m(side)
            elif name.endswith("aux_residual"):  # the filter follows the convolution, whose borders reach as far as the filter does
                f = torch.tensor(s.o.taps, dtype=x.dtype)
                f = f / f.sum()
                f = (f[:, None] * f[None, :]).expand(m.weight.shape[0], 1, -1, -1)
                y = F.conv2d(side, m.weight, padding=1 + (len(s.o.taps) - 1) // 2)
                y = F.conv2d(y, f, stride=2, groups=y.shape[1]) + m.bias[None, :, None, None]
                x = kept[-1] = side = (x + y) / math.sqrt(2)
            else:
                x = m(x, emb) if isinstance(m, Block) else m(x)
                kept.append(x)
        out = None
        for name, m in s.dec.items():
            if name.endswith("aux_up"):
                out = resample(out, s.o.taps, True)
            elif name.endswith("aux_norm"):
                y = m(x)
            elif name.endswith("aux_conv"):
                y = m(F.silu(y))
                out = y if out is None else out + y
            else:
                if "_block" in name:
                    x = torch.cat([x, kept.pop()], 1)
                x = m(x, emb)
        return out


class Dhariwal(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.c, s.o = c, Options()
        s.o.eps, s.o.adaptive, s.o.project, s.o.scale, s.o.taps, s.o.heads = 1e-5, True, False, 1, [1, 1], lambda ch: max(ch // 64, 1)
        mc, emb = c["model_channels"], 4 * c["model_channels"]
        if c.get("label_dim"):
            s.map_label = nn.Linear(c["label_dim"], emb, bias=False)
        s.map_layer0, s.map_layer1 = nn.Linear(mc, emb), nn.Linear(emb, emb)
        ch = halves(s, c, mc * c["channel_mult"][0], True, lambda *a: None)
        s.out_norm, s.out_conv = nn.GroupNorm(groups(ch), ch, eps=1e-5), nn.Conv2d(ch, c["out_channels"], 3, padding=1)

    def forward(s, x, t, label):
        half = s.c["model_channels"] // 2
        a = t[:, None] * (1 / 10000) ** (torch.arange(half, dtype=t.dtype) / half)
        e = s.map_layer1(F.silu(s.map_layer0(torch.cat([a.cos(), a.sin()], 1))))
        if s.c.get("label_dim"):
            one = torch.zeros(len(t), s.c["label_dim"], dtype=t.dtype)
            for i, k in enumerate(label):
                if k >= 0:
                    one[i, k] = 1
            e = e + s.map_label(one)
        e, kept = F.silu(e), []
        for m in s.enc.values():
            x = m(x, e) if isinstance(m, Block) else m(x)
            kept.append(x)
        for name, m in s.dec.items():
            if "_block" in name:
                x = torch.cat([x, kept.pop()], 1)
            x = m(x, e)
        return s.out_conv(F.silu(s.out_norm(x)))


class Res(nn.Module):
    """ADM's residual block; the numbers in its lists are the places of its layers."""

    def __init__(s, i, o, emb, scale_shift, up=False, down=False):
        super().__init__()
        s.up, s.down, s.ss = up, down, scale_shift
        s.in_layers = nn.ModuleDict({"0": nn.GroupNorm(32, i), "2": nn.Conv2d(i, o, 3, padding=1)})
        s.emb_layers = nn.ModuleDict({"1": nn.Linear(emb, 2 * o if scale_shift else o)})
        s.out_layers = nn.ModuleDict({"0": nn.GroupNorm(32, o), "3": nn.Conv2d(o, o, 3, padding=1)})
        if i != o:
            s.skip_connection = nn.Conv2d(i, o, 1)

    def forward(s, x, e):
        h = F.silu(s.in_layers["0"](x))
        if s.up:
            h, x = (F.interpolate(y, scale_factor=2, mode="nearest") for y in (h, x))
        if s.down:
            h, x = (F.avg_pool2d(y, 2) for y in (h, x))
        h = s.in_layers["2"](h)
        e = s.emb_layers["1"](F.silu(e))[:, :, None, None]
        if s.ss:
            a, b = e.chunk(2, 1)
            h = s.out_layers["0"](h) * (1 + a) + b
        else:
            h = s.out_layers["0"](h + e)
        h = s.out_layers["3"](F.silu(h))
        return h + (s.skip_connection(x) if hasattr(s, "skip_connection") else x)


class Attn(nn.Module):
    def __init__(s, c, heads, new):
        super().__init__()
        s.heads, s.new = heads, new
        s.norm, s.qkv, s.proj_out = nn.GroupNorm(32, c), nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def forward(s, x, e):
        n, c, h, w = x.shape
        y = s.qkv(s.norm(x).reshape(n, c, -1))
        d = c // s.heads
        if s.new:  # parts, then heads
            q, k, v = y.reshape(n, 3, s.heads, d, -1).unbind(1)
        else:  # heads, then parts
            q, k, v = y.reshape(n, s.heads, 3, d, -1).unbind(2)
        p = (q.transpose(2, 3) @ k / math.sqrt(d)).softmax(-1)
        return x + s.proj_out((v @ p.transpose(2, 3)).reshape(n, c, -1)).reshape(n, c, h, w)


class Plain(nn.Module):
    """A layer that takes no embedding, under one name."""

    def __init__(s, name, layer, up=False):
        super().__init__()
        s.add_module(name, layer)
        s.name, s.up = name, up

    def forward(s, x, e):
        if s.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return getattr(s, s.name)(x)


class ConvOnly(nn.Conv2d):
    def forward(s, x, e):
        return super().forward(x)


class ADM(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.c = c
        mc, emb, ss, nr, updown = c["num_channels"], 4 * c["num_channels"], c.get("use_scale_shift_norm", True), c["num_res_blocks"], c.get("resblock_updown", False)
        heads = lambda ch: ch // c["num_head_channels"] if c.get("num_head_channels", -1) > 0 else c["num_heads"]
        attn = lambda ch: Attn(ch, heads(ch), c.get("use_new_attention_order", False))
        s.time_embed = nn.ModuleDict({"0": nn.Linear(mc, emb), "2": nn.Linear(emb, emb)})
        if c.get("num_classes"):
            s.label_emb = nn.Embedding(c["num_classes"], emb)
        width = [int(m * mc) for m in c["channel_mult"]]
        ch, kept = width[0], [width[0]]
        ins = [nn.ModuleList([ConvOnly(c["in_channels"], ch, 3, padding=1)])]
        at = lambda level: c["image_size"] >> level in c["attention_resolutions"]
        for level, w in enumerate(width):
            for _ in range(nr):
                ins.append(nn.ModuleList([Res(ch, w, emb, ss)] + ([attn(w)] if at(level) else [])))
                ch = w
                kept.append(ch)
            if level + 1 < len(width):
                ins.append(nn.ModuleList([Res(ch, ch, emb, ss, down=True) if updown else Plain("op", nn.Conv2d(ch, ch, 3, stride=2, padding=1))]))
                kept.append(ch)
        s.input_blocks = nn.ModuleList(ins)
        s.middle_block = nn.ModuleList([Res(ch, ch, emb, ss), attn(ch), Res(ch, ch, emb, ss)])
        outs = []
        for level in reversed(range(len(width))):
            for i in range(nr + 1):
                parts = [Res(ch + kept.pop(), width[level], emb, ss)]
                ch = width[level]
                if at(level):
                    parts.append(attn(ch))
                if level and i == nr:
                    parts.append(Res(ch, ch, emb, ss, up=True) if updown else Plain("conv", nn.Conv2d(ch, ch, 3, padding=1), up=True))
                outs.append(nn.ModuleList(parts))
        s.output_blocks = nn.ModuleList(outs)
        s.out = nn.ModuleDict({"0": nn.GroupNorm(32, ch), "2": nn.Conv2d(ch, c["out_channels"], 3, padding=1)})

    def forward(s, x, t, label):
        half = s.c["num_channels"] // 2
        a = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=t.dtype) / half)
        e = s.time_embed["2"](F.silu(s.time_embed["0"](torch.cat([a.cos(), a.sin()], 1))))
        if s.c.get("num_classes"):
            e = e + s.label_emb(torch.tensor(label))
        kept = []
        for b in s.input_blocks:
            for m in b:
                x = m(x, e)
            kept.append(x)
        for m in s.middle_block:
            x = m(x, e)
        for b in s.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for m in b:
                x = m(x, e)
        return s.out["2"](F.silu(s.out["0"](x)))


song = {"_class_name": "SongUNet", "img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 2, "attn_resolutions": [8]}
cases = {
    "ddpmpp": {**song, "channel_mult": [1, 2, 2], "attn_resolutions": [8]},
    "ddpmpp-classes": {**song, "label_dim": 5, "num_blocks": 1, "precond": "vp"},
    "ncsnpp": {**song, "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1], "channel_mult": [1, 2, 2], "num_blocks": 1, "precond": "ve"},
    "skip-both": {**song, "encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1], "num_blocks": 1, "in_channels": 2, "out_channels": 2},
    "residual-box": {**song, "encoder_type": "residual", "num_blocks": 1, "model_channels": 8},
    "dhariwal": {"_class_name": "DhariwalUNet", "img_resolution": 16, "in_channels": 3, "out_channels": 3, "label_dim": 4, "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]},
    "adm": {"_class_name": "ADMUNet", "image_size": 16, "in_channels": 3, "out_channels": 6, "num_channels": 32, "num_res_blocks": 2, "channel_mult": [1, 2], "attention_resolutions": [8], "num_classes": 6, "num_head_channels": 16, "resblock_updown": True, "noise_schedule": "cosine", "use_new_attention_order": True},
    "adm-plain": {"_class_name": "ADMUNet", "image_size": 16, "in_channels": 1, "out_channels": 1, "num_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2, 2], "attention_resolutions": [16, 4], "num_heads": 4, "use_scale_shift_norm": False},
}


def denoised(net, c, x, sigma, label):
    """D(x; sigma) = skip x + out F(in x; noise)."""
    kind = c.get("precond", "edm")
    if kind == "edm":
        d = 0.5
        skip, out, inn, noise = d * d / (sigma**2 + d * d), sigma * d / math.sqrt(sigma**2 + d * d), 1 / math.sqrt(sigma**2 + d * d), math.log(sigma) / 4
    elif kind == "vp":  # beta from 0.1 to 20, times 999
        t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
        skip, out, inn, noise = 1, -sigma, 1 / math.sqrt(1 + sigma**2), 999 * t
    else:
        skip, out, inn, noise = 1, sigma, 1, math.log(sigma / 2)
    return skip * x + out * net(inn * x, torch.full((len(x),), noise, dtype=x.dtype), label)


def heun(net, c, x, label):
    lo, hi = (0.02, 100) if c.get("precond") == "ve" else (0.002, 80)
    n = 4
    s = [(hi ** (1 / 7) + i / (n - 1) * (lo ** (1 / 7) - hi ** (1 / 7))) ** 7 for i in range(n)] + [0.0]
    x = x * hi
    for a, b in zip(s, s[1:]):
        d = (x - denoised(net, c, x, a, label)) / a
        y = x + (b - a) * d
        if b > 0:
            y = x + (b - a) * (d + (y - denoised(net, c, y, b, label)) / b) / 2
        x = y
    return x


rel = lambda a, b: ((a.double() - b).norm() / b.norm()).item()
arrays, info = {}, {}
for name, c in cases.items():
    net = {"SongUNet": Song, "DhariwalUNet": Dhariwal, "ADMUNet": ADM}[c["_class_name"]](c)
    fill(net)
    side = c.get("img_resolution") or c.get("image_size")
    classes = c.get("label_dim") or c.get("num_classes")
    n = 3
    t = [-1.5, 0.25, 1.1] if "label_dim" in c or c["_class_name"] != "ADMUNet" else [0, 500, 999]
    label = None
    if classes:
        label = [1, classes - 1, -1 if "label_dim" in c else 0]
    shape = (n, c["in_channels"], side, side)
    x32 = torch.from_numpy(formula(name + ".sample", math.prod(shape), math.sqrt(3))).reshape(shape)
    result = {}
    for kind in (torch.float32, torch.float64):
        net = net.to(kind)
        x = x32.to(kind).requires_grad_()
        out = net(x, torch.tensor(t, dtype=kind), label)
        cot = torch.from_numpy(formula(name + ".cotangent", out.numel(), math.sqrt(3))).reshape(out.shape).to(kind)
        (g,) = torch.autograd.grad((out * cot).sum(), x)
        result[kind] = out.detach(), g
    (o32, g32), (o, g) = result[torch.float32], result[torch.float64]
    arrays |= {f"{name}.t": np.array(t), f"{name}.out": o.float().numpy(), f"{name}.vjp": g.float().numpy()}
    if c["_class_name"] != "ADMUNet":
        with torch.no_grad():
            start = torch.from_numpy(formula(name + ".start", math.prod(shape), math.sqrt(3))).reshape(shape).double()
            arrays[f"{name}.heun"] = heun(net, c, start, label).float().numpy()
    if label:
        arrays[f"{name}.class"] = np.array(label, dtype=np.int64)
    info[name] = {"config": c, "out_error": rel(o32, o), "vjp_error": rel(g32, g), "tensors": sorted(k for k in net.state_dict())}
    print(name, sum(p.numel() for p in net.parameters()), info[name]["out_error"], info[name]["vjp_error"], o.std().item())
np.savez_compressed(os.path.join(sys.argv[1], "golden.npz"), **arrays)
with open(os.path.join(sys.argv[1], "golden.json"), "w") as f:
    json.dump(info, f, indent=1)

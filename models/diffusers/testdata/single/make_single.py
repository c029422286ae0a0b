"""Where the tensors of Stable Diffusion's original files go in diffusers: names.json.gz, and a small .ckpt.

    python make_single.py CONFIGS OUT      (diffusers 0.42, transformers 5.23, torch 2.15; CONFIGS: fixtures/files/configs)

The original names are listed here from the structure of the programs that trained the models (input_blocks, middle_block,
output_blocks; OpenCLIP's resblocks). The truth is what diffusers' own conversion makes of them: every tensor is a marker that
takes no memory (its number, or along the fused matrices its row), so the result says which tensor, which third of it and
whether it was transposed. The names that come out must be exactly those of diffusers' models.

names.json.gz: for sd1, sd2, sdxl: "tensors" {original name: shape}, "unet", "vae", "text_encoder", "text_encoder_2"
{name of diffusers: [original name, third or -1, transposed]}.
tiny-vae.ckpt: a torch file {"state_dict": {...}, "global_step": 1} with the autoencoder of pipe-sd1's shape, formula weights
(value i of a tensor is ((7 i + length of its name) mod 17 - 8) / 32), under its original names.
"""
import gzip
import json
import os
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as convert
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

configs, out = sys.argv[1:3]


def conv(t, name, i, o, k):
    t[name + ".weight"], t[name + ".bias"] = [o, i, k, k], [o]


def linear(t, name, i, o, bias=True):
    t[name + ".weight"] = [o, i]
    if bias:
        t[name + ".bias"] = [o]


def norm(t, name, n):
    t[name + ".weight"], t[name + ".bias"] = [n], [n]


def ldm_unet(c):
    t, w, n = {}, c["block_out_channels"], c["layers_per_block"]
    ctx, lin = c["cross_attention_dim"], c.get("use_linear_projection", False)
    depths = c.get("transformer_layers_per_block", 1)
    depths = [depths] * len(w) if isinstance(depths, int) else depths
    emb = 4 * w[0]
    linear(t, "time_embed.0", w[0], emb)
    linear(t, "time_embed.2", emb, emb)
    if c.get("addition_embed_type"):
        linear(t, "label_emb.0.0", c["projection_class_embeddings_input_dim"], emb)
        linear(t, "label_emb.0.2", emb, emb)

    def res(p, i, o):
        norm(t, p + ".in_layers.0", i)
        conv(t, p + ".in_layers.2", i, o, 3)
        linear(t, p + ".emb_layers.1", emb, o)
        norm(t, p + ".out_layers.0", o)
        conv(t, p + ".out_layers.3", o, o, 3)
        if i != o:
            conv(t, p + ".skip_connection", i, o, 1)

    def attn(p, ch, depth):
        norm(t, p + ".norm", ch)
        (linear(t, p + ".proj_in", ch, ch) if lin else conv(t, p + ".proj_in", ch, ch, 1))
        for d in range(depth):
            b = f"{p}.transformer_blocks.{d}"
            for a, k in (("attn1", ch), ("attn2", ctx)):
                linear(t, f"{b}.{a}.to_q", ch, ch, False)
                linear(t, f"{b}.{a}.to_k", k, ch, False)
                linear(t, f"{b}.{a}.to_v", k, ch, False)
                linear(t, f"{b}.{a}.to_out.0", ch, ch)
            linear(t, b + ".ff.net.0.proj", ch, 8 * ch)
            linear(t, b + ".ff.net.2", 4 * ch, ch)
            for k in (1, 2, 3):
                norm(t, f"{b}.norm{k}", ch)
        (linear(t, p + ".proj_out", ch, ch) if lin else conv(t, p + ".proj_out", ch, ch, 1))

    conv(t, "input_blocks.0.0", c["in_channels"], w[0], 3)
    stack, ch, at = [w[0]], w[0], 1
    crossing = [k.startswith("Cross") for k in c["down_block_types"]]
    for i, o in enumerate(w):
        for _ in range(n):
            res(f"input_blocks.{at}.0", ch, o)
            ch = o
            if crossing[i]:
                attn(f"input_blocks.{at}.1", ch, depths[i])
            stack.append(ch)
            at += 1
        if i + 1 < len(w):
            conv(t, f"input_blocks.{at}.0.op", ch, ch, 3)
            stack.append(ch)
            at += 1
    res("middle_block.0", ch, ch)
    attn("middle_block.1", ch, depths[-1])
    res("middle_block.2", ch, ch)
    at = 0
    for i in reversed(range(len(w))):
        for j in range(n + 1):
            res(f"output_blocks.{at}.0", ch + stack.pop(), w[i])
            ch, part = w[i], 1
            if crossing[i]:
                attn(f"output_blocks.{at}.1", ch, depths[i])
                part = 2
            if i and j == n:
                conv(t, f"output_blocks.{at}.{part}.conv", ch, ch, 3)
            at += 1
    norm(t, "out.0", ch)
    conv(t, "out.2", ch, c["out_channels"], 3)
    return t


def ldm_vae(c):
    t, w, n, z = {}, c["block_out_channels"], c["layers_per_block"], c.get("latent_channels", 4)

    def res(p, i, o):
        norm(t, p + ".norm1", i)
        conv(t, p + ".conv1", i, o, 3)
        norm(t, p + ".norm2", o)
        conv(t, p + ".conv2", o, o, 3)
        if i != o:
            conv(t, p + ".nin_shortcut", i, o, 1)

    def mid(p, ch):
        res(p + ".block_1", ch, ch)
        norm(t, p + ".attn_1.norm", ch)
        for k in ("q", "k", "v", "proj_out"):
            conv(t, f"{p}.attn_1.{k}", ch, ch, 1)
        res(p + ".block_2", ch, ch)

    conv(t, "encoder.conv_in", 3, w[0], 3)
    ch = w[0]
    for i, o in enumerate(w):
        for j in range(n):
            res(f"encoder.down.{i}.block.{j}", ch, o)
            ch = o
        if i + 1 < len(w):
            conv(t, f"encoder.down.{i}.downsample.conv", ch, ch, 3)
    mid("encoder.mid", ch)
    norm(t, "encoder.norm_out", ch)
    conv(t, "encoder.conv_out", ch, 2 * z, 3)
    conv(t, "decoder.conv_in", z, ch, 3)
    mid("decoder.mid", ch)
    for i in reversed(range(len(w))):
        for j in range(n + 1):
            res(f"decoder.up.{i}.block.{j}", ch, w[i])
            ch = w[i]
        if i:
            conv(t, f"decoder.up.{i}.upsample.conv", ch, ch, 3)
    norm(t, "decoder.norm_out", ch)
    conv(t, "decoder.conv_out", ch, 3, 3)
    conv(t, "quant_conv", 2 * z, 2 * z, 1)
    conv(t, "post_quant_conv", z, z, 1)
    return t


def open_clip(width, layers, vocab=49408):
    t = {"positional_embedding": [77, width], "text_projection": [width, width], "logit_scale": []}
    t["token_embedding.weight"] = [vocab, width]
    for i in range(layers):
        b = f"transformer.resblocks.{i}"
        norm(t, b + ".ln_1", width)
        t[b + ".attn.in_proj_weight"], t[b + ".attn.in_proj_bias"] = [3 * width, width], [3 * width]
        linear(t, b + ".attn.out_proj", width, width)
        norm(t, b + ".ln_2", width)
        linear(t, b + ".mlp.c_fc", width, 4 * width)
        linear(t, b + ".mlp.c_proj", 4 * width, width)
    norm(t, "ln_final", width)
    return t


def clip_l():
    with torch.device("meta"):
        m = CLIPTextModel(text_config(768, 12, 12, "quick_gelu", 3072))
    t = {"transformer.text_model." + k.removeprefix("text_model."): list(v.shape) for k, v in m.state_dict().items()}
    t["transformer.text_model.embeddings.position_ids"] = [1, 77]
    return t


def text_config(width, layers, heads, act, inner, proj=None):
    return CLIPTextConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, hidden_act=act, intermediate_size=inner, projection_dim=proj or width)


def marker(k, shape):
    """A tensor full of k; a matrix made of thirds also says the row."""
    if len(shape) and shape[0] % 3 == 0 and "in_proj" in names[k]:
        rows = k * 100_000 + torch.arange(shape[0], dtype=torch.float64)
        return rows.reshape([-1] + [1] * (len(shape) - 1)).expand(shape)
    if names[k].endswith("text_projection"):
        return (k * 100_000 + torch.arange(shape[0], dtype=torch.float64))[:, None].expand(shape)
    return torch.full((1,), k * 100_000, dtype=torch.float64).expand(shape) if shape else torch.tensor(k * 100_000.0, dtype=torch.float64)


def read(t, got, model):
    """What the values say of where a tensor is from."""
    want = {k: list(v.shape) for k, v in model.state_dict().items() if not k.endswith("position_ids")}
    strip = lambda d: {k.removeprefix("text_model."): v for k, v in d.items() if not k.endswith("position_ids")}
    got, want = strip(got), strip(want)
    assert set(got) == set(want), (sorted(set(got) ^ set(want))[:10])
    table = {}
    for name, x in got.items():
        assert list(x.shape) == want[name], (name, list(x.shape), want[name])
        first = x.reshape(-1)[0].item()
        k, row = divmod(int(first), 100_000)
        third, transposed = -1, False
        if "in_proj" in names[k]:
            third = row // x.shape[0]
        if names[k].endswith("text_projection"):
            transposed = x[0, 1].item() != x[0, 0].item()  # rows run along the second axis
        table[name] = [names[k], third, transposed]
    return table


result = {}
names = []
for kind, unet, vae in (("sd1", "sd15-unet", "sd15-vae"), ("sd2", "sd21-unet", "sd21-vae"), ("sdxl", "sdxl-unet", "sdxl-vae")):
    unet, vae = (json.load(open(os.path.join(configs, f + ".model.json"))) for f in (unet, vae))
    shapes = {"model.diffusion_model." + k: v for k, v in ldm_unet(unet).items()}
    shapes |= {"first_stage_model." + k: v for k, v in ldm_vae(vae).items()}
    if kind == "sd1":
        shapes |= {"cond_stage_model." + k: v for k, v in clip_l().items()}
    if kind == "sd2":
        shapes |= {"cond_stage_model.model." + k: v for k, v in open_clip(1024, 24).items()}
    if kind == "sdxl":
        shapes |= {"conditioner.embedders.0." + k: v for k, v in clip_l().items()}
        shapes |= {"conditioner.embedders.1.model." + k: v for k, v in open_clip(1280, 32).items()}
    names = list(shapes)
    t = {name: marker(k, shapes[name]) for k, name in enumerate(names)}
    with torch.device("meta"):
        nets = {"unet": UNet2DConditionModel.from_config(unet), "vae": AutoencoderKL.from_config(vae)}
        if kind == "sd2":
            nets["text_encoder"] = CLIPTextModel(text_config(1024, 23, 16, "gelu", 4096))
        else:
            nets["text_encoder"] = CLIPTextModel(text_config(768, 12, 12, "quick_gelu", 3072))
        if kind == "sdxl":
            nets["text_encoder_2"] = CLIPTextModelWithProjection(text_config(1280, 32, 20, "gelu", 5120))
    rows = {"tensors": shapes}
    rows["unet"] = read(t, convert.convert_ldm_unet_checkpoint(dict(t), dict(nets["unet"].config)), nets["unet"])
    rows["vae"] = read(t, convert.convert_ldm_vae_checkpoint(dict(t), dict(nets["vae"].config)), nets["vae"])
    if kind == "sd2":
        got = convert.convert_open_clip_checkpoint(nets["text_encoder"], dict(t), prefix="cond_stage_model.model.")
        got.pop("text_projection.weight", None)
    else:
        prefix = "cond_stage_model.transformer." if kind == "sd1" else "conditioner.embedders.0.transformer."
        got = convert.convert_ldm_clip_checkpoint(dict(t), remove_prefix=prefix)
    rows["text_encoder"] = read(t, {k: v for k, v in got.items() if k.startswith("text_model") or True}, nets["text_encoder"])
    if kind == "sdxl":
        got = convert.convert_open_clip_checkpoint(nets["text_encoder_2"], dict(t), prefix="conditioner.embedders.1.model.")
        rows["text_encoder_2"] = read(t, got, nets["text_encoder_2"])
    result[kind] = rows
    print(kind, {k: len(v) for k, v in rows.items()})

with open(os.path.join(out, "names.json.gz"), "wb") as f, gzip.GzipFile(fileobj=f, mode="wb", mtime=0, filename="") as z:
    z.write(json.dumps(result, separators=(",", ":")).encode())

tiny = ldm_vae({"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4})
state = {}
for name, shape in tiny.items():
    name = "first_stage_model." + name
    n = 1
    for d in shape:
        n *= d
    state[name] = ((torch.arange(n) * 7 + len(name)) % 17 - 8).float().div(32).reshape(shape).half()
torch.save({"state_dict": state, "global_step": 1, "epoch": 0}, os.path.join(out, "tiny-vae.ckpt"))

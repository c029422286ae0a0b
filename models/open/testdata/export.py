"""Exports tiny pipelines and networks to ONNX in optimum's layout:  python export.py FIXTURES OUT

FIXTURES is the folder of model fixtures (pipe-sd1, pipe-sd3, unet2dcond-sdxl, sd3, flux, dit, unet2d-modern). OUT/onnx-sd1 is a whole
pipeline: the one in this folder, with expected.npz of a float64 run of the source; OUT/onnx-sd3 another. The others are single networks with their
io.npz, which the tests read from the folder that DRIFT_ONNX_EXPORTS names. Packages torch, diffusers, transformers, onnx.
"""
import json
import os
import shutil
import sys

import diffusers
import numpy as np
import onnx
import torch
import transformers

fixtures, out = sys.argv[1:3]


def export(net, names, args, path, outputs, dynamic, fixed=False):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if fixed:  # the other exporter, all sizes fixed: the first has no RMS norm
        torch.onnx.export(net.eval(), tuple(args), path, input_names=names, output_names=outputs, opset_version=18, dynamo=True, external_data=False)
    else:
        torch.onnx.export(net.eval(), tuple(args), path, input_names=names, output_names=outputs, opset_version=18, dynamo=False, dynamic_axes=dynamic)
    m = onnx.load(path)
    for n in m.graph.node:
        n.doc_string = ""
        n.name = ""
        del n.metadata_props[:]
    m.doc_string = ""
    del m.metadata_props[:]
    del m.graph.value_info[:]
    onnx.save(m, path)
    onnx.checker.check_model(path)


class Call(torch.nn.Module):
    def __init__(self, net, names, f=None):
        super().__init__()
        self.net, self.names, self.f = net, names, f

    def forward(self, *args):
        x = dict(zip(self.names, args))
        if self.f:
            return self.f(self.net, x)
        return self.net(**x, return_dict=False)[0]


def sd1():
    src, dst = os.path.join(fixtures, "pipe-sd1"), os.path.join(out, "onnx-sd1")
    for part in ["scheduler", "tokenizer"]:
        shutil.copytree(os.path.join(src, part), os.path.join(dst, part), dirs_exist_ok=True)
    os.remove(os.path.join(dst, "tokenizer", "tokenizer.json"))
    index = json.load(open(os.path.join(src, "model_index.json")))
    del index["vae"]
    for name, c in {"unet": "ORTUnet", "vae_decoder": "ORTVaeDecoder", "vae_encoder": "ORTVaeEncoder", "text_encoder": "ORTTextEncoder"}.items():
        index[name] = ["optimum.onnxruntime.modeling_diffusion", c]
    json.dump(index, open(os.path.join(dst, "model_index.json"), "w"), indent=1)
    unet = diffusers.UNet2DConditionModel.from_pretrained(src, subfolder="unet")
    unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    names = ["sample", "timestep", "encoder_hidden_states"]
    export(Call(unet, names), names, [torch.randn(2, 4, 16, 16), torch.tensor([3, 7]), torch.randn(2, 77, 16)], os.path.join(dst, "unet/model.onnx"), ["out_sample"],
           {"sample": {0: "batch", 2: "height", 3: "width"}, "timestep": {0: "batch"}, "encoder_hidden_states": {0: "batch", 1: "tokens"}})
    vae = diffusers.AutoencoderKL.from_pretrained(src, subfolder="vae")
    vae.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    axes = {0: "batch", 2: "height", 3: "width"}
    export(Call(vae, ["latent_sample"], lambda v, x: v.decode(x["latent_sample"], return_dict=False)[0]), ["latent_sample"], [torch.randn(1, 4, 16, 16)],
           os.path.join(dst, "vae_decoder/model.onnx"), ["sample"], {"latent_sample": axes, "sample": axes})
    export(Call(vae, ["sample"], lambda v, x: v._encode(x["sample"])), ["sample"], [torch.randn(1, 3, 32, 32)],
           os.path.join(dst, "vae_encoder/model.onnx"), ["latent_parameters"], {"sample": axes, "latent_parameters": axes})
    text = transformers.CLIPTextModel.from_pretrained(src, subfolder="text_encoder", attn_implementation="eager")
    export(Call(text, ["input_ids"], lambda t, x: (lambda o: (o.last_hidden_state, o.pooler_output))(t(**x))), ["input_ids"], [torch.ones(1, 77, dtype=torch.int64)],
           os.path.join(dst, "text_encoder/model.onnx"), ["last_hidden_state", "pooler_output"], {"input_ids": {0: "batch"}})
    for part, of in {"unet": "unet", "vae_decoder": "vae", "vae_encoder": "vae", "text_encoder": "text_encoder"}.items():
        shutil.copy(os.path.join(src, of, "config.json"), os.path.join(dst, part))
    np.savez(os.path.join(dst, "expected.npz"), images_uint8=np.load(os.path.join(src, "expected.npz"))["images_uint8"])


def sd3():
    src, dst = os.path.join(fixtures, "pipe-sd3"), os.path.join(out, "onnx-sd3")
    for part in ["scheduler", "tokenizer", "tokenizer_2"]:
        shutil.copytree(os.path.join(src, part), os.path.join(dst, part), dirs_exist_ok=True)
    index = json.load(open(os.path.join(src, "model_index.json")))
    del index["vae"]
    for name in ["transformer", "vae_decoder", "text_encoder", "text_encoder_2"]:
        index[name] = ["optimum.onnxruntime.modeling_diffusion", "ORTModel"]
    json.dump(index, open(os.path.join(dst, "model_index.json"), "w"), indent=1)
    net = diffusers.SD3Transformer2DModel.from_pretrained(src, subfolder="transformer")
    c = net.config
    names = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"]
    x = [torch.randn(2, c.in_channels, 16, 16), torch.randn(2, 93, c.joint_attention_dim), torch.randn(2, c.pooled_projection_dim), torch.tensor([3.0, 7.0])]
    export(Call(net, names), names, x, os.path.join(dst, "transformer/model.onnx"), ["out_hidden_states"], {**{n: {0: "batch"} for n in names}, "encoder_hidden_states": {0: "batch", 1: "tokens"}})
    vae = diffusers.AutoencoderKL.from_pretrained(src, subfolder="vae")
    vae.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    axes = {0: "batch", 2: "height", 3: "width"}
    export(Call(vae, ["latent_sample"], lambda v, x: v.decode(x["latent_sample"], return_dict=False)[0]), ["latent_sample"], [torch.randn(1, c.in_channels, 16, 16)],
           os.path.join(dst, "vae_decoder/model.onnx"), ["sample"], {"latent_sample": axes, "sample": axes})
    for part in ["text_encoder", "text_encoder_2"]:
        text = transformers.CLIPTextModelWithProjection.from_pretrained(src, subfolder=part, attn_implementation="eager")

        def call(t, x):
            o = t(**x, output_hidden_states=True)
            return (o.text_embeds, o.last_hidden_state, *o.hidden_states)

        layers = text.config.num_hidden_layers + 1
        export(Call(text, ["input_ids"], call), ["input_ids"], [torch.ones(1, 77, dtype=torch.int64)], os.path.join(dst, part, "model.onnx"),
               ["text_embeds", "last_hidden_state"] + [f"hidden_states.{i}" for i in range(layers)], {"input_ids": {0: "batch"}})
    for part, of in {"transformer": "transformer", "vae_decoder": "vae", "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}.items():
        shutil.copy(os.path.join(src, of, "config.json"), os.path.join(dst, part))
    np.savez(os.path.join(dst, "expected.npz"), images_uint8=np.load(os.path.join(src, "expected.npz"))["images_uint8"])


def network(name, cls, part, rename):
    src, dst = os.path.join(fixtures, name), os.path.join(out, name)
    net = cls.from_pretrained(src)
    if hasattr(net, "set_attn_processor") and cls is diffusers.UNet2DConditionModel:
        net.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    io = np.load(os.path.join(src, "io.npz"))
    x = {k: torch.from_numpy(io[k]) for k in io.files if k not in ("out", "cotangent", "vjp")}
    names = [rename.get(k, k) for k in x]

    def call(net, x):
        x = dict(zip(x0, x.values()))
        added = {k[6:]: x.pop(k) for k in list(x) if k.startswith("added_")}
        if added:
            x["added_cond_kwargs"] = added
        return net(**x, return_dict=False)[0]

    x0 = list(x)
    free = {n: {0: "batch"} for n, v in zip(names, x.values()) if v.ndim and n not in ("img_ids", "txt_ids")}
    export(Call(net, names, call), names, x.values(), os.path.join(dst, part, "model.onnx"), ["out_sample" if part == "unet" else "out_hidden_states"], free, cls is diffusers.FluxTransformer2DModel)
    shutil.copy(os.path.join(src, "config.json"), os.path.join(dst, part))
    shutil.copy(os.path.join(src, "io.npz"), dst)


sd1()
sd3()
network("unet2d-modern", diffusers.UNet2DModel, "unet", {})
network("unet2dcond-sdxl", diffusers.UNet2DConditionModel, "unet", {"added_text_embeds": "text_embeds", "added_time_ids": "time_ids"})
network("sd3", diffusers.SD3Transformer2DModel, "transformer", {})
network("dit", diffusers.DiTTransformer2DModel, "transformer", {})
network("flux", diffusers.FluxTransformer2DModel, "transformer", {})

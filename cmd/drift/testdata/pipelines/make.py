"""Whole pipelines on small made-up networks, and the pictures that diffusers draws with them: python make.py [CASE ...]

Writes into the folder where it stands: inputs/ (a picture and masks), tokenizers/, models/NAME/ (the folder that diffusers would write, without weights
and tokenizers), lora/, cases.json and NAME.npz (latents: the last ones; images: bytes). Weights follow from the tensors' names (drift/models/diffusers,
Formula), so none are stored. Everything is computed in float64 from float32 noise. Made with torch 2.15, diffusers 0.42.1, transformers 5.24, peft 0.21.
Case names on the command line make only those again."""
import contextlib
import inspect
import json
import os
import sys
import types
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")
import diffusers
import numpy as np
import PIL.Image
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

torch.set_num_threads(1)
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()
HERE = os.path.dirname(os.path.abspath(__file__))
T5 = os.path.join(HERE, "../../../../models/text/testdata/t5")


class Exact(TorchFunctionMode):
    """Turns every explicit float32 into float64."""

    off = False  # while noise is drawn

    def __enter__(self):
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *a):
        torch.set_default_dtype(self.default)
        return super().__exit__(*a)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if Exact.off:
            return func(*args, **(kwargs or {}))
        swap = lambda v: torch.float64 if v is torch.float32 else v
        if func is torch.Tensor.float:
            return args[0].double()
        if func is torch.linalg.solve:
            args = [a.double() for a in args]
        return func(*map(swap, args), **{k: swap(v) for k, v in (kwargs or {}).items()})


def uniforms(name, n):
    """n values in [-1, 1) of the sequence of a name: splitmix64 from its FNV-1a hash."""
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = (h ^ b) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def formula(net):
    done = set()
    with torch.no_grad():
        for name, p in net.state_dict(keep_vars=True).items():
            if not p.is_floating_point() or p.data_ptr() in done:
                continue
            done.add(p.data_ptr())
            u = uniforms(name.removeprefix("text_model."), p.numel()).reshape(p.shape)
            if p.ndim >= 2:
                u = u * (3 / p[0].numel()) ** 0.5
            else:
                u = 1 + 0.1 * u if name.endswith(".weight") else 0.05 * u
            p.copy_(torch.tensor(u))
    return net.eval()


# --- parts -----------------------------------------------------------------------------------------------------------

UNET = dict(sample_size=16, block_out_channels=[8, 16], layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
VAE = dict(sample_size=32, block_out_channels=[8, 16], layers_per_block=1, latent_channels=4, norm_num_groups=4, scaling_factor=0.6,
           down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
CLIP = dict(vocab_size=520, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
            hidden_act="quick_gelu", eos_token_id=2, bos_token_id=0, pad_token_id=1)
CLIP2 = dict(CLIP, hidden_size=12, num_hidden_layers=3, num_attention_heads=3, hidden_act="gelu", projection_dim=12)
LONG = dict(vocab_size=132, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, relative_attention_num_buckets=8, relative_attention_max_distance=16,
            feed_forward_proj="gated-gelu", dropout_rate=0.0)
SD = dict(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


def model(cls, config):
    return formula(getattr(diffusers, cls).from_config(config))


def clip(config, cls="CLIPTextModel"):
    net = formula(getattr(transformers, cls)(transformers.CLIPTextConfig(**config)))
    if hasattr(net, "final_layer_norm"):  # where diffusers looks for it
        net.__dict__["text_model"] = types.SimpleNamespace(final_layer_norm=net.final_layer_norm)
    return net


def t5():
    return formula(transformers.T5EncoderModel(transformers.T5Config(**LONG)))


def byte_table():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


MERGES = [("a", "t</w>"), ("c", "at</w>"), ("r", "e"), ("re", "d</w>"), ("t", "h"), ("th", "e</w>")]


def clip_tokenizer(pad):
    table = byte_table()
    vocab = table + [c + "</w>" for c in table] + ["".join(m) for m in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={t: i for i, t in enumerate(vocab)}, merges=MERGES, pad_token=pad, model_max_length=77)


def t5_tokenizer():
    return transformers.T5TokenizerFast(tokenizer_file=os.path.join(T5, "tokenizer.json"), eos_token="</s>", pad_token="<pad>", unk_token="<unk>", extra_ids=0)


TOKENIZERS = {"clip": lambda: clip_tokenizer("<|endoftext|>"), "clip-pad": lambda: clip_tokenizer("!"), "t5": t5_tokenizer}
NOTHING = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def scheduler(cls, **config):
    return getattr(diffusers, cls)(**config)


def sd1(**unet):
    return dict(unet=model("UNet2DConditionModel", dict(UNET, **unet)), vae=model("AutoencoderKL", VAE), text_encoder=clip(CLIP), tokenizer="clip")


def sdxl(**unet):
    config = dict(UNET, cross_attention_dim=28, attention_head_dim=[2, 4], use_linear_projection=True, transformer_layers_per_block=[1, 2],
                  addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=12 + 6 * 8,
                  down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], **unet)
    return dict(unet=model("UNet2DConditionModel", config), vae=model("AutoencoderKL", dict(VAE, scaling_factor=0.13025)), text_encoder=clip(CLIP), tokenizer="clip",
                text_encoder_2=clip(CLIP2, "CLIPTextModelWithProjection"), tokenizer_2="clip-pad")


def sd3():
    net = model("SD3Transformer2DModel", dict(sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=2,
                                              joint_attention_dim=28, caption_projection_dim=16, pooled_projection_dim=28, pos_embed_max_size=12))
    vae = model("AutoencoderKL", dict(VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609))
    return dict(transformer=net, vae=vae, text_encoder=clip(dict(CLIP, projection_dim=16), "CLIPTextModelWithProjection"), tokenizer="clip",
                text_encoder_2=clip(CLIP2, "CLIPTextModelWithProjection"), tokenizer_2="clip-pad",
                text_encoder_3=formula(transformers.T5EncoderModel(transformers.T5Config(**dict(LONG, d_model=28)))), tokenizer_3="t5")


def flux(guidance=True):
    net = model("FluxTransformer2DModel", dict(patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=12, num_attention_heads=2,
                                               joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=guidance, axes_dims_rope=[4, 4, 4]))
    vae = model("AutoencoderKL", dict(VAE, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159))
    return dict(transformer=net, vae=vae, text_encoder=clip(CLIP), tokenizer="clip", text_encoder_2=t5(), tokenizer_2="t5")


def pixart(size):
    net = model("PixArtTransformer2DModel", dict(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=24,
                                                 sample_size=size, patch_size=2, caption_channels=16, norm_elementwise_affine=False, norm_eps=1e-6))
    return dict(transformer=net, vae=model("AutoencoderKL", VAE), text_encoder=t5(), tokenizer="t5")


def ldm():
    net = model("UNet2DModel", dict(sample_size=16, in_channels=3, out_channels=3, block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
                                    down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"]))
    vq = model("VQModel", dict(in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[8, 16],
                               layers_per_block=1, latent_channels=3, sample_size=32, num_vq_embeddings=64, norm_num_groups=4, vq_embed_dim=3))
    return dict(unet=net, vqvae=vq)


# What makes the folder NAME: parts, the class of its model_index.json, and its scheduler.
MODELS = {
    "sd1": (sd1, "StableDiffusionPipeline", ("DDIMScheduler", dict(SD, clip_sample=False, set_alpha_to_one=False)), NOTHING),
    "sd1-paint": (lambda: sd1(in_channels=9), "StableDiffusionInpaintPipeline", ("PNDMScheduler", dict(SD, skip_prk_steps=True)), NOTHING),
    "sd2": (lambda: sd1(attention_head_dim=[2, 4], use_linear_projection=True), "StableDiffusionPipeline",
            ("DDIMScheduler", dict(SD, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")), NOTHING),
    "lcm": (lambda: sd1(time_cond_proj_dim=12), "LatentConsistencyModelPipeline", ("LCMScheduler", dict(SD)), NOTHING),
    "tcd": (sd1, "StableDiffusionPipeline", ("TCDScheduler", dict(SD)), NOTHING),
    "sdxl": (sdxl, "StableDiffusionXLPipeline", ("EulerDiscreteScheduler", dict(SD, timestep_spacing="leading")), dict(force_zeros_for_empty_prompt=True)),
    "sdxl-paint": (lambda: sdxl(in_channels=9), "StableDiffusionXLInpaintPipeline", ("EulerDiscreteScheduler", dict(SD, timestep_spacing="leading")), dict(force_zeros_for_empty_prompt=True)),
    "turbo": (sdxl, "StableDiffusionXLPipeline", ("EulerAncestralDiscreteScheduler", dict(SD, timestep_spacing="trailing")), dict(force_zeros_for_empty_prompt=True)),
    "sd3": (sd3, "StableDiffusion3Pipeline", ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0)), {}),
    "flux": (flux, "FluxPipeline", ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096)), {}),
    "schnell": (lambda: flux(False), "FluxPipeline", ("FlowMatchEulerDiscreteScheduler", dict(shift=1.0)), {}),
    "pixart": (lambda: pixart(16), "PixArtAlphaPipeline", ("DPMSolverMultistepScheduler", dict(beta_schedule="linear", num_train_timesteps=1000)), {}),
    "pixart-1024": (lambda: pixart(128), "PixArtAlphaPipeline", ("DPMSolverMultistepScheduler", dict(beta_schedule="linear", num_train_timesteps=1000)), {}),
    "sigma": (lambda: pixart(16), "PixArtSigmaPipeline", ("DPMSolverMultistepScheduler", dict(beta_schedule="linear", num_train_timesteps=1000)), {}),
    "ldm": (ldm, "LDMPipeline", ("DDIMScheduler", dict(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False, timestep_spacing="leading")), {}),
}

PROMPT = "A red cat on the roof"
IMAGE, MASK, TALL, TALLMASK = "inputs/picture.png", "inputs/mask.png", "inputs/tall.png", "inputs/tallmask.png"

# name: folder, pipeline class (None: the folder's), call, flags of drift. FILE:X stands for the path of an input, and in the call for the picture.
CASES = [
    ("sd1", "sd1", None, dict(prompt=PROMPT, negative_prompt="dog", num_inference_steps=6, guidance_scale=5.0), "--negative-prompt dog --steps 6 --cfg-scale 5"),
    ("sd1-skip", "sd1", None, dict(prompt=PROMPT, num_inference_steps=4, guidance_scale=1.0, clip_skip=1), "--steps 4 --cfg-scale 1 --clip-skip 1"),
    ("sd1-long", "sd1", None, dict(prompt="the cat, " * 100, num_inference_steps=2, guidance_scale=3.0), "--steps 2 --cfg-scale 3"),
    ("sd1-clip", "sd1 DDIMScheduler", None, dict(prompt=PROMPT, num_inference_steps=6, guidance_scale=5.0), "--steps 6 --cfg-scale 5"),
    ("sd1-image", "sd1", "StableDiffusionImg2ImgPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, strength=0.7, num_inference_steps=8, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --strength 0.7 --steps 8 --cfg-scale 4 --noise torch"),
    ("sd1-mask", "sd1", "StableDiffusionInpaintPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, mask_image="FILE:" + MASK, strength=0.6, num_inference_steps=8, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --mask FILE:{MASK} --strength 0.6 --steps 8 --cfg-scale 4 --noise torch"),
    ("sd1-mask-full", "sd1", "StableDiffusionInpaintPipeline", dict(prompt=PROMPT, image="FILE:" + TALL, mask_image="FILE:" + TALLMASK, height=48, width=32, num_inference_steps=5, guidance_scale=4.0),
     f"--init-image FILE:{TALL} --mask FILE:{TALLMASK} -W 32 -H 48 --steps 5 --cfg-scale 4 --noise torch"),
    ("sd1-mask-ancestral", "sd1 EulerAncestralDiscreteScheduler", "StableDiffusionInpaintPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, mask_image="FILE:" + MASK, strength=0.8, num_inference_steps=6, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --mask FILE:{MASK} --strength 0.8 --steps 6 --cfg-scale 4 --noise torch"),
    ("sd1-mask-2m", "sd1 DPMSolverMultistepScheduler", "StableDiffusionInpaintPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, mask_image="FILE:" + MASK, strength=0.8, num_inference_steps=6, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --mask FILE:{MASK} --strength 0.8 --steps 6 --cfg-scale 4 --noise torch"),
    ("sd1-paint", "sd1-paint", None, dict(prompt=PROMPT, image="FILE:" + IMAGE, mask_image="FILE:" + MASK, num_inference_steps=6, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --mask FILE:{MASK} --steps 6 --cfg-scale 4 --noise torch"),
    ("sd1-paint-part", "sd1-paint DDIMScheduler", None, dict(prompt=PROMPT, image="FILE:" + IMAGE, mask_image="FILE:" + MASK, strength=0.7, num_inference_steps=6, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --mask FILE:{MASK} --strength 0.7 --steps 6 --cfg-scale 4 --noise torch"),
    ("sd2", "sd2", None, dict(prompt=PROMPT, num_inference_steps=5, guidance_scale=4.0, guidance_rescale=0.7), "--steps 5 --guider cfg:w=4,rescale=0.7"),
    # five steps: with six, which do not divide 1000, diffusers' DDIM goes to timestep 333 and asks the network at 332
    ("sd2-image", "sd2", "StableDiffusionImg2ImgPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, strength=0.6, num_inference_steps=5, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --strength 0.6 --steps 5 --cfg-scale 4 --noise torch"),
    ("lcm", "lcm", None, dict(prompt=PROMPT, num_inference_steps=4, guidance_scale=8.0), "--steps 4 --guidance 8 --noise torch"),
    ("lcm-image", "lcm", "LatentConsistencyModelImg2ImgPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, strength=0.5, num_inference_steps=4, guidance_scale=8.0),
     f"--init-image FILE:{IMAGE} --strength 0.5 --steps 4 --guidance 8 --noise torch"),
    ("sd1-lcm", "sd1 !LCMScheduler", None, dict(prompt=PROMPT, num_inference_steps=4, guidance_scale=2.0), "--steps 4 --cfg-scale 2 --noise torch --sampler lcm --schedule lcm"),
    ("tcd", "tcd", None, dict(prompt=PROMPT, num_inference_steps=4, guidance_scale=1.0, eta=0.3), "--steps 4 --cfg-scale 1 --noise torch"),
    ("tcd-lora", "tcd", None, dict(prompt=PROMPT, num_inference_steps=4, guidance_scale=1.0, eta=0.3, lora={"unet": 0.8, "text": 0.5}),
     "--steps 4 --cfg-scale 1 --noise torch --lora FILE:lora/unet.safetensors:0.8 --lora FILE:lora/text.safetensors:0.5"),
    ("sdxl", "sdxl", None, dict(prompt=PROMPT, num_inference_steps=5, guidance_scale=5.0, height=32, width=48), "--steps 5 --cfg-scale 5 -W 48 -H 32"),
    ("sdxl-negative", "sdxl", None, dict(prompt=PROMPT, negative_prompt="rain", num_inference_steps=4, guidance_scale=3.0), "--negative-prompt rain --steps 4 --cfg-scale 3"),
    ("sdxl-lora", "sdxl", None, dict(prompt=PROMPT, num_inference_steps=4, guidance_scale=3.0, lora={"sgm": 0.7}), "--steps 4 --cfg-scale 3 --lora FILE:lora/sgm.safetensors:0.7"),
    ("sdxl-image", "sdxl", "StableDiffusionXLImg2ImgPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, strength=0.5, num_inference_steps=6, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --strength 0.5 --steps 6 --cfg-scale 4 --noise torch"),
    ("sdxl-mask", "sdxl", "StableDiffusionXLInpaintPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, mask_image="FILE:" + MASK, height=32, width=32, strength=0.9, num_inference_steps=6, guidance_scale=4.0),
     f"--init-image FILE:{IMAGE} --mask FILE:{MASK} --strength 0.9 --steps 6 --cfg-scale 4 --noise torch"),
    ("sdxl-paint", "sdxl-paint", None, dict(prompt=PROMPT, image="FILE:" + TALL, mask_image="FILE:" + TALLMASK, height=48, width=32, strength=0.99, num_inference_steps=5, guidance_scale=4.0),
     f"--init-image FILE:{TALL} --mask FILE:{TALLMASK} -W 32 -H 48 --strength 0.99 --steps 5 --cfg-scale 4 --noise torch"),
    ("turbo", "turbo", None, dict(prompt=PROMPT, num_inference_steps=2, guidance_scale=0.0), "--steps 2 --cfg-scale 1 --noise torch"),
    ("sd3", "sd3", None, dict(prompt=PROMPT, negative_prompt="", num_inference_steps=5, guidance_scale=4.0, height=32, width=32, max_sequence_length=24), "--steps 5 --cfg-scale 4 -W 32 -H 32 --text-tokens 24"),
    ("sd3-image", "sd3", "StableDiffusion3Img2ImgPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, strength=0.75, num_inference_steps=6, guidance_scale=4.0, height=32, width=32, max_sequence_length=24),
     f"--init-image FILE:{IMAGE} --strength 0.75 --steps 6 --cfg-scale 4 -W 32 -H 32 --text-tokens 24 --noise torch"),
    ("sd3-mask", "sd3", "StableDiffusion3InpaintPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, mask_image="FILE:" + MASK, strength=0.75, num_inference_steps=6, guidance_scale=4.0, height=32, width=32, max_sequence_length=24),
     f"--init-image FILE:{IMAGE} --mask FILE:{MASK} --strength 0.75 --steps 6 --cfg-scale 4 -W 32 -H 32 --text-tokens 24 --noise torch"),
    ("flux", "flux", None, dict(prompt=PROMPT, num_inference_steps=5, guidance_scale=3.5, height=32, width=48, max_sequence_length=24), "--steps 5 -W 48 -H 32 --text-tokens 24"),
    ("flux-image", "flux", "FluxImg2ImgPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, strength=0.7, num_inference_steps=5, guidance_scale=2.5, height=32, width=32, max_sequence_length=24),
     f"--init-image FILE:{IMAGE} --strength 0.7 --steps 5 --guidance 2.5 -W 32 -H 32 --text-tokens 24 --noise torch"),
    ("flux-mask", "flux", "FluxInpaintPipeline", dict(prompt=PROMPT, image="FILE:" + IMAGE, mask_image="FILE:" + MASK, strength=0.8, num_inference_steps=5, guidance_scale=3.5, height=32, width=32, max_sequence_length=24),
     f"--init-image FILE:{IMAGE} --mask FILE:{MASK} --strength 0.8 --steps 5 -W 32 -H 32 --text-tokens 24 --noise torch"),
    ("schnell", "schnell", None, dict(prompt=PROMPT, num_inference_steps=4, guidance_scale=0.0, height=32, width=32, max_sequence_length=16), "-W 32 -H 32 --text-tokens 16"),
    ("pixart", "pixart", None, dict(prompt=PROMPT, negative_prompt="", num_inference_steps=5, guidance_scale=4.5, height=32, width=32, use_resolution_binning=False, max_sequence_length=24),
     "--steps 5 --cfg-scale 4.5 --text-tokens 24"),
    ("pixart-1024", "pixart-1024", None, dict(prompt=PROMPT, negative_prompt="", num_inference_steps=4, guidance_scale=4.5, height=48, width=32, use_resolution_binning=False, max_sequence_length=24),
     "--steps 4 --cfg-scale 4.5 -W 32 -H 48 --text-tokens 24"),
    ("sigma", "sigma", None, dict(prompt=PROMPT, num_inference_steps=4, guidance_scale=4.5, height=32, width=32, use_resolution_binning=False), "--steps 4"),
    ("ldm", "ldm", None, dict(num_inference_steps=6, eta=0.0), "--steps 6"),
] + [
    ("sd1-" + short, "sd1 " + cls, None, dict(prompt=PROMPT, num_inference_steps=5, guidance_scale=3.0), "--steps 5 --cfg-scale 3 --noise torch")
    for short, cls in (("pndm", "PNDMScheduler"), ("ddpm", "DDPMScheduler"), ("euler", "EulerDiscreteScheduler"), ("euler-a", "EulerAncestralDiscreteScheduler"), ("heun", "HeunDiscreteScheduler"),
                       ("lms", "LMSDiscreteScheduler"), ("kdpm2", "KDPM2DiscreteScheduler"), ("kdpm2-a", "KDPM2AncestralDiscreteScheduler"), ("2m", "DPMSolverMultistepScheduler"),
                       ("single", "DPMSolverSinglestepScheduler"), ("deis", "DEISMultistepScheduler"), ("unipc", "UniPCMultistepScheduler"), ("sa", "SASolverScheduler"))
] + [
    ("sd1-" + short, "sd1 " + cls, None, dict(prompt=PROMPT, num_inference_steps=6, guidance_scale=3.0), "--steps 6 --cfg-scale 3 --noise torch", config)
    for short, cls, config in (
        ("single-3", "DPMSolverSinglestepScheduler", dict(solver_order=3)), ("single-heun", "DPMSolverSinglestepScheduler", dict(solver_type="heun")),
        ("single-eps", "DPMSolverSinglestepScheduler", dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", lower_order_final=True)),
        ("unipc-eps", "UniPCMultistepScheduler", dict(predict_x0=False, solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min")), ("lcm-scaling", "LCMScheduler", dict(timestep_scaling=5.0)),
        ("2m-sde", "DPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++", solver_type="heun", use_karras_sigmas=True)),
        ("3m", "DPMSolverMultistepScheduler", dict(solver_order=3, euler_at_final=True)), ("2m-threshold", "DPMSolverMultistepScheduler", dict(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9)),
        ("deis-3", "DEISMultistepScheduler", dict(solver_order=3)),
        ("euler-karras", "EulerDiscreteScheduler", dict(use_karras_sigmas=True, timestep_spacing="trailing")), ("lms-leading", "LMSDiscreteScheduler", dict(timestep_spacing="leading")),
        ("sa-3", "SASolverScheduler", dict(predictor_order=3, corrector_order=1)))
] + [
    ("sd2-threshold", "sd2 DDIMScheduler", None, dict(prompt=PROMPT, num_inference_steps=5, guidance_scale=2.0), "--steps 5 --cfg-scale 2",
     dict(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9, prediction_type="v_prediction")),
]
SEED = 5


def draw(shape, generator=None, device=None, dtype=None, layout=None):
    """randn_tensor from float32 noise."""
    if isinstance(generator, list):
        generator = generator[0]
    Exact.off = True
    z = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    Exact.off = False
    return z.to(torch.float64)


@contextlib.contextmanager
def float32_noise():
    mods = [m for m in list(sys.modules.values()) if getattr(m, "__name__", "").startswith("diffusers.") and "randn_tensor" in getattr(m, "__dict__", {})]
    old = [m.randn_tensor for m in mods]
    for m in mods:
        m.randn_tensor = draw
    try:
        yield
    finally:
        for m, f in zip(mods, old):
            m.randn_tensor = f


def inputs():
    os.makedirs(os.path.join(HERE, "inputs"), exist_ok=True)
    for h, name, mask in ((32, IMAGE, MASK), (48, TALL, TALLMASK)):
        y, x = np.mgrid[0:h, 0:32]
        rgb = np.stack([127 + 120 * np.sin(x / 5) * np.cos(y / 7), 8 * x * 0.9, 255 - 5 * y + 20 * ((x // 4 + y // 4) % 2)], -1)
        PIL.Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(os.path.join(HERE, name))
        m = ((x - 18) ** 2 + (y - h / 2) ** 2 < 90) * 255
        m[2:5, 3:9] = 140  # grey above one half
        m[2:5, 20:24] = 100  # and below
        PIL.Image.fromarray(m.astype(np.uint8)).save(os.path.join(HERE, mask))


def loras(parts):
    """One of the UNet and one of the text encoder, as peft and as diffusers save them."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    import transformers.integrations.peft as integration

    integration.check_peft_version = lambda **k: None  # it asks for a later release than there is
    os.makedirs(os.path.join(HERE, "lora"), exist_ok=True)
    for name, net, prefix, modules in (("unet", parts["unet"], "unet.", ["to_q", "to_v", "conv1"]), ("text", parts["text_encoder"], "text_encoder.", ["q_proj", "fc1"])):
        net.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=modules), adapter_name=name)
        state = {}
        for k, v in get_peft_model_state_dict(net, adapter_name=name).items():
            state[prefix + k] = torch.tensor(uniforms("lora." + k, v.numel()).reshape(v.shape) * 0.4, dtype=torch.float32)
        save_file(state, os.path.join(HERE, "lora", name + ".safetensors"))
        net.delete_adapter(name) if hasattr(net, "delete_adapter") else None


def original_lora(unet):
    """One by kohya's scripts, with the names of the original layout: levels and layers of the small XL network, one layer each."""
    names = {"down_blocks.0.resnets.0.": "input_blocks.1.0.", "down_blocks.1.resnets.0.": "input_blocks.3.0.", "down_blocks.1.attentions.0.": "input_blocks.3.1.",
             "mid_block.attentions.0.": "middle_block.1.", "up_blocks.0.attentions.0.": "output_blocks.0.1.", "up_blocks.0.attentions.1.": "output_blocks.1.1.",
             "up_blocks.1.resnets.1.": "output_blocks.3.0."}
    parts = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    state = {}
    for key, p in unet.state_dict().items():
        if not key.endswith(".weight") or p.ndim < 2:
            continue
        module = key.removesuffix(".weight")
        at = next((n for n in names if module.startswith(n)), None)
        if at is None or not any(s in module for s in ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "time_emb_proj")):
            continue
        rest = module.removeprefix(at)
        flat = "lora_unet_" + (names[at] + parts.get(rest, rest)).replace(".", "_")
        value = lambda n, *shape: torch.tensor(uniforms("lora." + module + n, int(np.prod(shape))).reshape(shape) * 0.3, dtype=torch.float32)
        state[flat + ".lora_down.weight"] = value("down", 2, *p.shape[1:])
        state[flat + ".lora_up.weight"] = value("up", p.shape[0], 2, *([1] * (p.ndim - 2)))
        state[flat + ".alpha"] = torch.tensor(1.5)
    os.makedirs(os.path.join(HERE, "lora"), exist_ok=True)
    save_file(state, os.path.join(HERE, "lora", "sgm.safetensors"))


def folder(name):
    """The pipeline in float64, its folder without weights, and what the tokenizers are."""
    make, cls, (sched, config), extra = MODELS[name]
    parts = make()
    tokens = {k: v for k, v in parts.items() if isinstance(v, str)}
    for k, v in tokens.items():
        parts[k] = TOKENIZERS[v]()
    full = dict(parts, scheduler=scheduler(sched, **config), **extra)
    dir = os.path.join(HERE, "models", name)
    os.makedirs(dir, exist_ok=True)
    pipe = getattr(diffusers, cls)(**full)
    pipe.save_config(dir)
    for k, v in full.items():
        if k == "scheduler":
            v.save_pretrained(os.path.join(dir, k))
        elif isinstance(v, torch.nn.Module):
            os.makedirs(os.path.join(dir, k), exist_ok=True)
            if hasattr(v, "save_config"):
                v.save_config(os.path.join(dir, k))
            else:
                v.config.architectures = [type(v).__name__]
                v.config.save_pretrained(os.path.join(dir, k))
    for root, _, files in os.walk(dir):
        for f in files:
            path = os.path.join(root, f)
            with open(path) as h:
                d = json.load(h)
            d.pop("_name_or_path", None)
            with open(path, "w") as h:
                h.write(json.dumps(d, indent=1, sort_keys=True) + "\n")
    with open(os.path.join(dir, "tokenizers.json"), "w") as h:
        h.write(json.dumps(tokens) + "\n")
    return full, cls


def main():
    only = sys.argv[1:]
    inputs()
    for name in ("clip", "clip-pad"):
        dir = os.path.join(HERE, "tokenizers", name)
        os.makedirs(dir, exist_ok=True)
        tok = TOKENIZERS[name]()
        vocab = tok.get_vocab()
        with open(os.path.join(dir, "vocab.json"), "w") as f:
            json.dump(dict(sorted(vocab.items(), key=lambda kv: kv[1])), f, ensure_ascii=True)
        with open(os.path.join(dir, "merges.txt"), "w") as f:
            f.write("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in MERGES))
        with open(os.path.join(dir, "special_tokens_map.json"), "w") as f:
            json.dump({k + "_token": getattr(tok, k + "_token") for k in ("bos", "eos", "pad", "unk")}, f)
        with open(os.path.join(dir, "tokenizer_config.json"), "w") as f:
            json.dump({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}, f)
    rows = []
    for name, base, cls, call, flags, *more in CASES:
        config = dict(SD, **more[0]) if more else SD
        base, _, other = base.partition(" ")
        rows.append({"name": name, "model": base, "scheduler": "" if other.startswith("!") else other, "config": config if other and not other.startswith("!") else None, "prompt": call.get("prompt", ""), "flags": flags})
        if only and name not in only:
            continue
        full, own = folder(base)
        call = dict(call)
        if "sgm" in call.get("lora", ()):
            original_lora(full["unet"])
        elif "lora" in call:
            loras(full)
            full, own = folder(base)
        changes = {n: load_file(os.path.join(HERE, "lora", n + ".safetensors")) for n in call.get("lora", ())}
        with Exact(), torch.no_grad(), float32_noise():
            for v in full.values():
                if isinstance(v, torch.nn.Module):
                    v.double()
            made = full["scheduler"]
            full["scheduler"] = type(made)(**{k: v for k, v in made.config.items() if not k.startswith("_")})
            if other:
                sched = getattr(diffusers, other.lstrip("!"))
                full["scheduler"] = sched(**{k: v for k, v in config.items() if k in inspect.signature(sched.__init__).parameters})
            cls = getattr(diffusers, cls or own)
            accepts = set(inspect.signature(cls.__init__).parameters)
            pipe = cls(**{k: v for k, v in full.items() if k in accepts})
            pipe.set_progress_bar_config(disable=True)
            if "lora" in call:
                scales = call.pop("lora")
                for n in scales:
                    pipe.load_lora_weights(changes[n], adapter_name=n)
                pipe.set_adapters(list(scales), list(scales.values()))
                for v in full.values():
                    if isinstance(v, torch.nn.Module):
                        v.double()
            for k, v in call.items():
                if isinstance(v, str) and v.startswith("FILE:"):
                    m = PIL.Image.open(os.path.join(HERE, v[5:]))
                    call[k] = m if k == "mask_image" else m.convert("RGB")
            if base == "ldm":
                call["batch_size"] = 1
            generator = lambda: [torch.Generator().manual_seed(SEED)]
            images = pipe(**call, generator=generator(), output_type="np").images
            arrays = {"images": (images * 255).round().astype(np.uint8)}
            if name == "sd3-mask":
                del arrays["images"]  # that pipeline leaves shift_factor out when it decodes
            if base != "ldm":
                z = pipe(**call, generator=generator(), output_type="latent").images
                if own == "FluxPipeline" and z.ndim == 3:
                    z = pipe._unpack_latents(z, call["height"], call["width"], pipe.vae_scale_factor)
                arrays["latents"] = z.float().numpy() if z.dtype == torch.float32 else np.asarray(z.numpy(), np.float32)
        assert np.isfinite(images).all()
        np.savez_compressed(os.path.join(HERE, name + ".npz"), **arrays)
        lat = arrays.get("latents")
        print(f"{name:20s} {images.shape} clipped {((images == 0) | (images == 1)).mean():.2f} latents {'' if lat is None else (lat.shape, round(float(lat.std()), 3))}", flush=True)
    with open(os.path.join(HERE, "cases.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()

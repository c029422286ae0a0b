"""LoRA files for the network unet2dcond-sd1 of the fixtures, and its output with them merged: python make_lora.py FIXTURE OUT

Writes peft.safetensors (the names of diffusers and peft), kohya.safetensors (the same matrices under kohya's names, with alphas),
and io.npz: out with scale 0.8, wholly in float64. Made with torch 2.15, diffusers 0.42 and peft 0.18."""
import copy
import sys

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

fixture, out = sys.argv[1:3]
net = UNet2DConditionModel.from_pretrained(fixture)
base = {k: v.clone() for k, v in net.state_dict().items()}
rank, alpha, scale = 3, 6.0, 0.8
net.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "proj_in"]))
g = torch.Generator().manual_seed(5)
state = {k: torch.randn(v.shape, generator=g) * 0.2 for k, v in get_peft_model_state_dict(net).items()}
# as peft saves them, the rank's scale folded in as its alpha says: alpha/rank = 2 is carried by kohya's files, peft's by 1
peft, kohya = {}, {}
merged = {k: v.double() for k, v in base.items()}
for name in sorted({k.rsplit(".lora_", 1)[0] for k in state}):
    down, up = state[name + ".lora_A.weight"], state[name + ".lora_B.weight"]
    peft["unet." + name + ".lora_A.weight"], peft["unet." + name + ".lora_B.weight"] = down, up * (alpha / rank)
    flat = "lora_unet_" + name.replace(".", "_")
    kohya[flat + ".lora_down.weight"], kohya[flat + ".lora_up.weight"], kohya[flat + ".alpha"] = down, up, torch.tensor(alpha)
    w = merged[name + ".weight"]
    delta = (up.double().flatten(1) @ down.double().flatten(1)).reshape(w.shape)
    merged[name + ".weight"] = w + scale * alpha / rank * delta
save_file({k: v.contiguous() for k, v in peft.items()}, out + "/peft.safetensors")
save_file({k: v.contiguous() for k, v in kohya.items()}, out + "/kohya.safetensors")
io = np.load(fixture + "/io.npz")


def run(net, dtype):
    with torch.no_grad():
        return net(torch.tensor(io["sample"]).to(dtype), torch.tensor(io["timestep"]), torch.tensor(io["encoder_hidden_states"]).to(dtype)).sample


# The reference's own merge must agree with the one above.
ref = UNet2DConditionModel.from_pretrained(fixture)
ref.load_lora_adapter({k.removeprefix("unet."): v for k, v in peft.items()}, prefix=None)
ref.fuse_lora(lora_scale=scale)
plain = UNet2DConditionModel.from_pretrained(fixture).double()
plain.load_state_dict(merged)
a, b = run(plain, torch.float64), run(ref, torch.float32).double()
print("merge by hand against diffusers:", float((a - b).norm() / a.norm()), "against no LoRA:", float((a - torch.tensor(io["out"]).double()).norm() / a.norm()))
np.savez(out + "/io.npz", out=a.float().numpy())

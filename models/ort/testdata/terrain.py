"""The golden of the terrain network, by Python's ONNX Runtime:

    python terrain.py MODEL.onnx terrain.npz             makes the golden
    python terrain.py MODEL.onnx IN.npz OUT.npz          runs the arrays of a file

MODEL.onnx is terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx of the package adaptive-terrain-diffusion
0.4.2. The input is a formula, which the test knows too: u_i = ((1103515245 i + 12345) mod 2^31)/2^30 - 1, times sigma sqrt 3.
"""
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
if len(sys.argv) == 4:
    out, = session.run(["denoised"], dict(np.load(sys.argv[2])))
    np.savez(sys.argv[3], denoised=out)
    sys.exit()
sigma, difficulty = np.array([80, 1.5]), np.array([59 / 99, 10 / 99])
i = np.arange(2 * 128 * 128, dtype=np.int64)
u = ((1103515245 * i + 12345) % 2**31) / 2.0**30 - 1
noisy = (u.reshape(2, 1, 128, 128) * sigma.reshape(2, 1, 1, 1) * np.sqrt(3)).astype(np.float32)
out, = session.run(["denoised"], {"noisy": noisy, "sigma": sigma.astype(np.float32), "difficulty": difficulty.astype(np.float32)})
np.savez_compressed(sys.argv[2], sigma=sigma, difficulty=difficulty, part=out[:, :, ::4, ::4], norm=np.sqrt((out.astype(np.float64) ** 2).sum()))
print(onnxruntime.__version__, out.mean(), out.std())

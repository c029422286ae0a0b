"""Makes the tiny ONNX files of the tests, all with answers in closed form:  python make.py  (packages onnx, numpy).

gauss64      E[x0|x] of N(m_k, 0.25) on x = x0 + sigma eps, k = label, all in float64
gauss        the same in float32
half         the same, state and answer in float16, sigma in float32, label in int32
eps          the noise of N(0.5, 0.25) on 1000 discrete timesteps, told one whole number for the whole batch
scalar       gauss with mean = level, a number per row
two          gauss without labels for batches of 2 only
gauss64.vjp  the gradient of gauss64 (graded.onnx is gauss64 again, with a sidecar that names it)
external     gauss64 with the means in external.bin
classifier   logits and features of a 4 x 4 picture
noisy        log p(k | x, sigma) of the classes of gauss64 without the null class
score        the mean of a picture
slow         multiplies matrices `times` times
vector       E[x0|x] of N(0, 1) in two dimensions, told ln(sigma)/4 and a matrix of codes
"""
import os

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

MEANS = np.array([[-0.5], [0.25], [0.75], [0.0]])  # three classes and "no class"
VAR = 0.25


def save(name, nodes, inputs, outputs, weights, opset=17, external=None):
    g = h.make_graph(nodes, name, [h.make_tensor_value_info(*i) for i in inputs], [h.make_tensor_value_info(*o) for o in outputs],
                     [nh.from_array(np.asarray(v), k) for k, v in weights.items()])
    m = h.make_model(g, opset_imports=[h.make_opsetid("", opset)], ir_version=8, producer_name="drift tests")
    h.set_model_props(m, {"made": "by make.py"})
    onnx.checker.check_model(m)
    if external:
        if os.path.exists(external):  # onnx would append
            os.remove(external)
        for t in m.graph.initializer:
            if t.name == "means":
                onnx.external_data_helper.set_external_data(t, location=external)
    onnx.save(m, name + ".onnx")


def shrink(mean, noisy="noisy", sigma="sigma4"):
    """(VAR x + sigma^2 mean) / (VAR + sigma^2)"""
    return [
        h.make_node("Mul", [sigma, sigma], ["s2"]), h.make_node("Mul", [noisy, "var"], ["a"]), h.make_node("Mul", ["s2", mean], ["b"]),
        h.make_node("Add", ["a", "b"], ["top"]), h.make_node("Add", ["s2", "var"], ["bottom"]), h.make_node("Div", ["top", "bottom"], ["denoised"]),
    ]


def gauss(name, typ, dtype, **more):
    save(name, [
        h.make_node("Reshape", ["sigma", "to4"], ["sigma4"]),
        h.make_node("Gather", ["means", "label"], ["m"]), h.make_node("Reshape", ["m", "to4"], ["m4"]),
        *shrink("m4"),
    ], [("noisy", typ, ["batch", 1, 4, 4]), ("sigma", typ, ["batch"]), ("label", T.INT64, ["batch"])], [("denoised", typ, ["batch", 1, 4, 4])],
        {"means": MEANS.astype(dtype), "var": np.array(VAR, dtype), "to4": np.array([-1, 1, 1, 1])}, **more)


gauss("gauss64", T.DOUBLE, np.float64)
gauss("gauss", T.FLOAT, np.float32)
gauss("external", T.DOUBLE, np.float64, external="external.bin")

save("half", [
    h.make_node("Cast", ["noisy16"], ["noisy"], to=T.FLOAT),
    h.make_node("Reshape", ["sigma", "to4"], ["sigma4"]),
    h.make_node("Gather", ["means", "label"], ["m"]), h.make_node("Reshape", ["m", "to4"], ["m4"]),
    *shrink("m4"), h.make_node("Cast", ["denoised"], ["denoised16"], to=T.FLOAT16),
], [("noisy16", T.FLOAT16, ["batch", 1, 4, 4]), ("sigma", T.FLOAT, ["batch"]), ("label", T.INT32, ["batch"])], [("denoised16", T.FLOAT16, ["batch", 1, 4, 4])],
    {"means": MEANS.astype(np.float32), "var": np.array(VAR, np.float32), "to4": np.array([-1, 1, 1, 1])})

bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
save("gauss64.vjp", [  # the gradient of gauss64 by noisy, which does not depend on it or the label
    h.make_node("Reshape", ["sigma", "to4"], ["sigma4"]), h.make_node("Mul", ["sigma4", "sigma4"], ["s2"]), h.make_node("Add", ["s2", "var"], ["bottom"]),
    h.make_node("Mul", ["cotangent", "var"], ["top"]), h.make_node("Div", ["top", "bottom"], ["grad"]),
], [("sigma", T.DOUBLE, ["batch"]), ("cotangent", T.DOUBLE, ["batch", 1, 4, 4])], [("grad", T.DOUBLE, ["batch", 1, 4, 4])],
    {"var": np.array(VAR), "to4": np.array([-1, 1, 1, 1])})

save("eps", [
    h.make_node("Gather", ["alphas", "timestep"], ["alpha"]), h.make_node("Gather", ["sigmas", "timestep"], ["sig"]),
    h.make_node("Mul", ["alpha", "mean"], ["am"]), h.make_node("Sub", ["sample", "am"], ["d"]), h.make_node("Mul", ["d", "sig"], ["top"]),
    h.make_node("Mul", ["alpha", "alpha"], ["a2"]), h.make_node("Mul", ["a2", "var"], ["av"]), h.make_node("Mul", ["sig", "sig"], ["s2"]),
    h.make_node("Add", ["av", "s2"], ["bottom"]), h.make_node("Div", ["top", "bottom"], ["out_sample"]),
], [("sample", T.DOUBLE, ["batch", 1, 4, 4]), ("timestep", T.INT64, [])], [("out_sample", T.DOUBLE, ["batch", 1, 4, 4])],
    {"alphas": np.sqrt(bars), "sigmas": np.sqrt(1 - bars), "mean": np.array(0.5), "var": np.array(VAR)})

save("scalar", [
    h.make_node("Reshape", ["sigma", "to4"], ["sigma4"]), h.make_node("Reshape", ["level", "to4"], ["m4"]), *shrink("m4"),
], [("noisy", T.DOUBLE, ["batch", 1, 4, 4]), ("sigma", T.DOUBLE, ["batch"]), ("level", T.DOUBLE, ["batch", 1])], [("denoised", T.DOUBLE, ["batch", 1, 4, 4])],
    {"var": np.array(VAR), "to4": np.array([-1, 1, 1, 1])})

save("two", [
    h.make_node("Reshape", ["sigma", "to4"], ["sigma4"]), *shrink("mean"),
], [("noisy", T.DOUBLE, [2, 1, 4, 4]), ("sigma", T.DOUBLE, [2])], [("denoised", T.DOUBLE, [2, 1, 4, 4])],
    {"var": np.array(VAR), "mean": np.array(0.25), "to4": np.array([-1, 1, 1, 1])})

rng = np.random.default_rng(7)
save("classifier", [
    h.make_node("Flatten", ["image"], ["flat"]), h.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"]), h.make_node("Relu", ["hidden"], ["features"]),
    h.make_node("Gemm", ["features", "w2", "b2"], ["logits"]),
], [("image", T.FLOAT, ["n", 1, 4, 4])], [("logits", T.FLOAT, ["n", 3]), ("features", T.FLOAT, ["n", 5])],
    {k: rng.standard_normal(s).astype(np.float32) / 2 for k, s in {"w1": (16, 5), "b1": (5,), "w2": (5, 3), "b2": (3,)}.items()})

save("noisy", [
    h.make_node("Sub", ["x", "means"], ["d"]),                      # (b,1,16) - (1,3,1)
    h.make_node("Mul", ["d", "d"], ["d2"]), h.make_node("ReduceSum", ["d2", "last"], ["q"], keepdims=0),
    h.make_node("Mul", ["sigma", "sigma"], ["s2"]), h.make_node("Add", ["s2", "var2"], ["v"]), h.make_node("Mul", ["v", "minus2"], ["v2"]),
    h.make_node("Unsqueeze", ["v2", "one"], ["v3"]), h.make_node("Div", ["q", "v3"], ["logits"]),
], [("x", T.DOUBLE, ["batch", 1, 16]), ("sigma", T.DOUBLE, ["batch"])], [("logits", T.DOUBLE, ["batch", 3])],
    {"means": MEANS[:3].reshape(1, 3, 1), "var2": np.array(VAR), "minus2": np.array(-2.0), "last": np.array([2]), "one": np.array([1])})

save("score", [
    h.make_node("ReduceMean", ["image"], ["score"], axes=[1, 2, 3], keepdims=0),
], [("image", T.FLOAT, ["n", 1, 4, 4])], [("score", T.FLOAT, ["n"])], {})

body = h.make_graph([
    h.make_node("Identity", ["go"], ["go_on"]), h.make_node("MatMul", ["y", "w"], ["y2"]), h.make_node("Clip", ["y2", "low", "high"], ["y3"]),
], "body", [h.make_tensor_value_info("i", T.INT64, []), h.make_tensor_value_info("go", T.BOOL, []), h.make_tensor_value_info("y", T.FLOAT, [256, 256])],
    [h.make_tensor_value_info("go_on", T.BOOL, []), h.make_tensor_value_info("y3", T.FLOAT, [256, 256])])
save("slow", [
    h.make_node("Expand", ["x", "size"], ["w"]), h.make_node("Loop", ["times", "", "w"], ["out"], body=body),
], [("x", T.FLOAT, []), ("times", T.INT64, [])], [("out", T.FLOAT, [256, 256])],
    {"size": np.array([256, 256]), "low": np.array(-1, np.float32), "high": np.array(1, np.float32)})

save("vector", [
    h.make_node("Mul", ["noise", "four"], ["ls"]), h.make_node("Exp", ["ls"], ["sigma"]), h.make_node("Unsqueeze", ["sigma", "one"], ["sigma2"]),
    h.make_node("ReduceMean", ["codes"], ["mean"], axes=[1, 2], keepdims=0), h.make_node("Unsqueeze", ["mean", "one"], ["mean2"]),
    *[n for n in shrink("mean2", "x", "sigma2")],
], [("x", T.DOUBLE, ["batch", 2]), ("noise", T.DOUBLE, ["batch"]), ("codes", T.DOUBLE, ["batch", "tokens", 3])], [("denoised", T.DOUBLE, ["batch", 2])],
    {"var": np.array(VAR), "four": np.array(4.0), "one": np.array([1])})


def hostile(name, nodes, inputs=("x",), weights={}):
    """Sound protocol buffers of graphs that are none."""
    value = lambda n: h.make_tensor_value_info(n, T.FLOAT, ["b"])
    g = h.make_graph(nodes, name, [value(n) for n in inputs], [value("y")], [nh.from_array(np.asarray(v), k) for k, v in weights.items()])
    onnx.save(h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=8), "hostile/" + name + ".onnx")


os.makedirs("hostile", exist_ok=True)
hostile("cycle", [h.make_node("Add", ["x", "y"], ["a"]), h.make_node("Add", ["a", "x"], ["y"])])
hostile("unknown", [h.make_node("NoSuchOp", ["x"], ["y"])])
hostile("negative", [h.make_node("ConstantOfShape", ["s"], ["c"]), h.make_node("Add", ["x", "c"], ["y"])], weights={"s": np.array([-5])})
hostile("dangling", [h.make_node("Add", ["x", "nowhere"], ["y"])])
hostile("enormous", [h.make_node("ConstantOfShape", ["s"], ["c"]), h.make_node("ReduceMean", ["c"], ["m"], keepdims=0), h.make_node("Add", ["x", "m"], ["y"])],
        weights={"s": np.array([2**40, 2**40])})
np.savez("codes.npz", codes=np.array([np.full((2, 3), -0.5), np.full((2, 3), 0.25), np.full((2, 3), 0.0)]))

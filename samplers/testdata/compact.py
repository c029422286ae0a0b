"""Picks the runs that the default tests replay: for every sampler string, the smallest recorded run.

python compact.py FIXTURES/solvers OUT      (needs only the standard library)
"""
import json, os, shutil, sys

src, out = sys.argv[1], sys.argv[2]
index = json.load(open(os.path.join(src, "trajectories", "index.json")))
best = {}
for r in index["runs"]:
    if r.get("kind"):
        continue
    size = os.path.getsize(os.path.join(src, "trajectories", r["file"]))
    key = r["sampler"], r["reference"].split()[0]
    if key not in best or size < best[key][0]:
        best[key] = size, r
keep = ["id", "file", "target", "sampler", "name", "steps", "nfe", "batch", "dim", "grid", "init", "noise", "reference",
        "tolerance", "guidance", "adaptive", "orders", "schedule", "note"]
runs = [{k: r[k] for k in keep if k in r} for _, r in best.values()]
os.makedirs(os.path.join(out, "trajectories", "init"), exist_ok=True)
os.makedirs(os.path.join(out, "targets"), exist_ok=True)
for r in runs:
    for f in {os.path.join("trajectories", r["file"]), os.path.join("trajectories", r["init"]), r["target"]}:
        shutil.copyfile(os.path.join(src, f), os.path.join(out, f))
json.dump({"runs": runs}, open(os.path.join(out, "trajectories", "index.json"), "w"), indent=0)
print(len(runs), "runs")

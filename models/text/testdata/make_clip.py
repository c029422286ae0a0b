"""CLIP's vocabulary for the binary, and what transformers makes of texts with it.

    python make_clip.py bpe_simple_vocab_16e6.txt.gz TEXTS.json OUT      (transformers 5.23)

The first file is OpenAI's (github.com/openai/CLIP, MIT licence), as the package clip-anytorch 2.6.0 carries it; TEXTS is the
expected.json of fixtures/models/tokenizer-clip, whose texts are taken. Writes OUT/clip/merges.txt.gz, the 48,894 merges that CLIP
uses, from which its 49,408 tokens follow, and OUT/testdata/clip_expected.json.
"""
import gzip
import json
import os
import sys
import tempfile

from transformers import CLIPTokenizer

source, texts, out = sys.argv[1:4]
lines = gzip.open(source).read().decode("utf-8").split("\n")
merges = lines[1 : 49152 - 256 - 2 + 1]
with open(os.path.join(out, "clip", "merges.txt.gz"), "wb") as f, gzip.GzipFile(fileobj=f, mode="wb", mtime=0, filename="", compresslevel=9) as z:
    z.write(("\n".join(merges) + "\n").encode())
printable = list(range(ord("!"), ord("~") + 1)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
chars = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
vocab = chars + [c + "</w>" for c in chars] + ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
assert len(vocab) == 49408
rows = [r["text"] for r in json.load(open(texts))] + [
    "a photo of a cat", "A photograph of an astronaut riding a horse", "oil on canvas, by Rembrandt (1650s), 8k, trending on artstation", "supercalifragilisticexpialidocious",
]
with tempfile.TemporaryDirectory() as d:
    json.dump({t: i for i, t in enumerate(vocab)}, open(os.path.join(d, "vocab.json"), "w"))
    open(os.path.join(d, "merges.txt"), "w").write("#version: 0.2\n" + "\n".join(merges) + "\n")
    json.dump({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, open(os.path.join(d, "tokenizer_config.json"), "w"))
    t = CLIPTokenizer.from_pretrained(d)
    result = [{"text": x, "ids": t(x)["input_ids"]} for x in rows]
with open(os.path.join(out, "testdata", "clip_expected.json"), "w") as f:
    json.dump(result, f, ensure_ascii=True)
for r in result[-4:]:
    print(r)

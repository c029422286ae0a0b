"""A small T5 tokenizer and what tokenizers and sentencepiece make of some texts with it: python make_t5.py t5

Made with sentencepiece 0.2 and tokenizers 0.22; spm does not know tokens that stand for themselves. Writes spiece.model, tokenizer.json and expected.json."""
import io
import json
import sys

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

TEXT = """A photograph of an astronaut riding a horse on the moon, highly detailed. A painting of a fox sitting in a field at sunrise.
A bowl of soup that is also a portal to another dimension, digital art. An old house near the sea, oil on canvas, warm light.
The quick brown fox jumps over the lazy dog. A red cube on top of a blue sphere, studio light, white background, 35mm photograph.
A city street at night with neon lights and rain, cinematic, wide angle. Portrait of a woman with flowers in her hair, watercolor.
A small robot holding a sign that says hello, cartoon style. Mountains and a lake, fog, morning light. It's naïve, café, über."""
STRINGS = ["", " ", "a", "A photograph of an astronaut riding a horse", "a photo   of\ta cat\nsleeping", "The fox's robot, it's NICE", "naïve café über", "nai\u0308ve",
           "東京の夜景", "½ ² ① ﬁne", "x" * 40, "hello</s>world", "<extra_id_0> cat", "tab\u00a0nbsp\u3000em", "  leading  ", "a\u200bb", "🦊 a fox", "Portrait, (word) [x] {y}", "ＦＵＬＬ width"]

out = sys.argv[1]
model = io.BytesIO()
spm.SentencePieceTrainer.train(sentence_iterator=iter((TEXT * 3).split("\n")), model_writer=model, vocab_size=130, model_type="unigram",
                               pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, normalization_rule_name="nmt_nfkc", num_threads=1)
with open(out + "/spiece.model", "wb") as f:
    f.write(model.getvalue())
proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
tok = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=2))
tok.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
tok.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
tok.save(out + "/tokenizer.json", pretty=False)
sp = spm.SentencePieceProcessor(model_proto=model.getvalue())
rows = [{"text": s, "ids": tok.encode(s).ids + [1], "spm": sp.encode(s) + [1]} for s in STRINGS]
with open(out + "/expected.json", "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")

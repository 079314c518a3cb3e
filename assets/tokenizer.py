"""The tiny base's tokenizer: CLIP's byte-level BPE with a vocabulary learnt on the studio's captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ..data.studio import CLASSES, COLOURS, FINISHES

CONTEXT_LENGTH = 32
WORDS = [*CLASSES, *COLOURS, *FINISHES, "a", "an", "and", "the", "of", "on", "white", "grey", "background",
"product",
         "photo", "picture", "studio", "with", ",", "."]  # fmt: skip


def build_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """Every one of these words (the studio's) is one token; anything else falls back to pieces and bytes."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit()])
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", show_progress=False, min_frequency=1, special_tokens=[]
    )
    bpe.train_from_iterator([" ".join(words)] * 10, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {
        token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=CONTEXT_LENGTH
    )
    tokenizer.save_pretrained(folder)
    return tokenizer

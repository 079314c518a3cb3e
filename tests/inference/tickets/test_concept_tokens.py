"""Concepts among a prompt's tokens: spellings, words, what is cut off."""

import pytest
from onbrand.inference.tickets.concept_tokens import concept_positions
from transformers import CLIPTokenizer


def tokenizer(merges=(), length=16):
    """Letters, and the pieces that these merges make of them."""
    letters = [*"abcdefghijklmnopqrstuvwxyz-,.<>"]
    pieces = ["".join(pair.split()) for pair in merges]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters), *pieces]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    pairs = [tuple(pair.split()) for pair in merges]
    return CLIPTokenizer(vocab=vocab, merges=pairs, pad_token="<|endoftext|>", model_max_length=length)


@pytest.fixture(scope="module")
def spelling():
    return tokenizer(length=40)


@pytest.fixture(scope="module")
def splitting():
    """ "mug" and "cat" are one token, "mugs" is mu g s, as in BPE vocabularies that lack a word."""
    return tokenizer(["m u", "mu g</w>", "c a", "ca t</w>", "ca r</w>", "a n", "an d</w>"], length=40)


def words(tokenizer, prompt, positions):
    ids = tokenizer(prompt).input_ids
    return "".join(tokenizer.convert_ids_to_tokens([ids[p] for p in positions])).replace("</w>", "|")


@pytest.mark.parametrize(
    ("prompt", "concept", "found"),
    [
        ("a mug and a cat", "mug", "mug|"),
        ("a Mug and a cat", "mUG", "mug|"),
        ("a mug, a cat.", "cat", "cat|"),
        ("two mugs and a cat", "mug", "mugs|"),
        ("two tea mugs and a cat", "tea mug", "tea|mugs|"),
        ("mug cat mug", "mug", "mug|mug|"),
        ("a t-shirt", "T-shirt", "t|-|shirt|"),
        ("red mugs, mug", "mug", "mug|"),
        ("some ponies", "pony", "ponies|"),
        ("two boxes", "box", "boxes|"),
    ],
)
@pytest.mark.parametrize("kind", ["spelling", "splitting"])
def test_a_concept_is_found_whole(kind, prompt, concept, found, request):
    own = request.getfixturevalue(kind)
    (positions,) = concept_positions(own, prompt, [concept])
    assert words(own, prompt, positions) == found


@pytest.mark.parametrize("prompt", ["a scar", "a cart", "an oscar"])
@pytest.mark.parametrize("kind", ["spelling", "splitting"])
def test_a_part_of_a_word_is_not_the_word(kind, prompt, request):
    with pytest.raises(ValueError, match=f"must stand in the prompt '{prompt}', got 'car'"):
        concept_positions(request.getfixturevalue(kind), prompt, ["car"])


def test_positions_are_those_the_text_encoder_sees(splitting):
    assert concept_positions(splitting, "a mug and a cat", ["cat", "mug"]) == [[5], [2]]


def test_a_token_belongs_to_one_concept_the_longer_first(splitting):
    prompt = "a mug and a cat mug"
    assert concept_positions(splitting, prompt, ["mug", "cat mug"]) == [[2], [5, 6]]
    with pytest.raises(ValueError, match=r"must stand in the prompt 'a cat mug', got 'mug'"):
        concept_positions(splitting, "a cat mug", ["mug", "cat mug"])


def test_a_plural_beside_its_singular_is_its_own_concept():
    own = tokenizer(["c a", "ca t</w>", "ca t", "cat s</w>"])
    assert concept_positions(own, "cat cats", ["cat", "cats"]) == [[1], [2]]
    assert concept_positions(own, "cats cat", ["cat", "cats"]) == [[2], [1]]


def test_punctuation_that_the_vocabulary_joins_to_a_word():
    class Joining:
        """Splits at spaces alone."""

        model_max_length, all_special_ids = 20, (0, 1)
        ids = {}  # noqa: RUF012

        def __call__(self, text, add_special_tokens=True, **_):
            own = [self.ids.setdefault(word, len(self.ids) + 2) for word in text.lower().split()]
            return type("Encoding", (), {"input_ids": [0, *own, 1] if add_special_tokens else own})

        def get_added_vocab(self):
            return {}

        def convert_ids_to_tokens(self, ids):
            names = {number: word for word, number in self.ids.items()}
            return [names.get(i, "") for i in ids]

    assert concept_positions(Joining(), "a red mug, a hat", ["red mug", "hat"]) == [[2, 3], [5]]


def test_an_added_token_is_a_word(splitting):
    splitting.add_tokens(["<my>"])
    assert concept_positions(splitting, "a <my> mug", ["<my>", "mug"]) == [[2], [3]]
    assert concept_positions(splitting, "a <my>mug", ["mug"]) == [[3]]


def test_a_concept_cut_off_is_refused():
    own = tokenizer(length=10)  # start, eight letters, end
    assert concept_positions(own, "mug xxhat", ["mug"]) == [[1, 2, 3]]
    assert concept_positions(own, "mug xx hat", ["hat"]) == [[6, 7, 8]]
    with pytest.raises(ValueError, match=r"within the first 9 tokens of the prompt, got 'hat' cut off in"):
        concept_positions(own, "mug xxx hat", ["hat"])
    assert concept_positions(own, "hat xxx hat", ["hat"]) == [[1, 2, 3]]


def test_a_concept_without_words_is_refused(spelling):
    with pytest.raises(ValueError, match="concept must have words, got ' '"):
        concept_positions(spelling, "a mug", [" "])

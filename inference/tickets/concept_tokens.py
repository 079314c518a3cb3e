"""Where a concept's words stand among the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

WORD_END = "</w>"
PUNCTUATION = ",.;:!?"


def concept_positions(tokenizer: Any, prompt: str, concepts: Sequence[str]) -> list[list[int]]:
    """For each concept the positions of its tokens in the prompt, as the text encoder sees them.

    All its occurrences count. A concept is found by its tokens in a row, from the beginning of a word to the
    end of one; failing that in its plural, then with punctuation that the vocabulary joins to it. A token
    belongs to one concept: longer ones choose first ("red mug" before "mug").
    Raises ValueError on a concept without tokens, not in the prompt, or cut off at the tokenizer's length.
    """
    ids = list(tokenizer(prompt, verbose=False).input_ids)
    last = tokenizer.model_max_length - 1  # where the end-of-text token stands
    free = set(range(len(ids)))
    found: dict[str, list[int]] = {}
    for concept in sorted(dict.fromkeys(concepts), key=lambda c: -len(_ids(tokenizer, c))):
        if not _ids(tokenizer, concept):
            raise ValueError(f"concept must have words, got {concept!r}")
        places = _places(tokenizer, ids, concept, free)
        if not places:
            raise ValueError(f"concept must stand in the prompt {prompt!r}, got {concept!r}")
        whole = [place for place in places if place.stop <= last]
        if not whole:
            raise ValueError(
                f"concept must lie within the first {last} tokens of the prompt, got {concept!r} cut off "
                f"in {prompt!r}"
            )
        found[concept] = [position for place in whole for position in place]
        free -= {position for place in places for position in place}
    return [found[concept] for concept in concepts]


def _places(tokenizer: Any, ids: list[int], concept: str, free: set[int]) -> list[range]:
    """Where the concept stands, in the first kind of spelling that is found at all."""
    for spellings in _spellings(concept):
        wanted = [_ids(tokenizer, spelling) for spelling in spellings]
        places = [
            range(at, at + len(want))
            for want in wanted
            for at in range(len(ids) - len(want) + 1)
            if ids[at : at + len(want)] == want
            and free.issuperset(range(at, at + len(want)))
            and _begins_word(tokenizer, ids, at)
        ]
        if places:
            return sorted(places, key=lambda place: place.start)
    return []


def _spellings(concept: str) -> Iterator[list[str]]:
    plurals = [f"{concept}s", f"{concept}es"]
    if concept.endswith("y"):
        plurals.append(f"{concept[:-1]}ies")
    yield [concept]
    yield plurals
    yield [word + mark for word in (concept, *plurals) for mark in PUNCTUATION]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _begins_word(tokenizer: Any, ids: list[int], at: int) -> bool:
    """Whether the token before ends a word, where the vocabulary marks that; added tokens are words."""
    added = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    if at == 0 or ids[at - 1] in added or ids[at] in added:
        return True
    before, *_ = tokenizer.convert_ids_to_tokens([ids[at - 1]])
    marked = any(token.endswith(WORD_END) for token in tokenizer.convert_ids_to_tokens(ids))
    return before.endswith(WORD_END) or not marked

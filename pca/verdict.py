"""A diagnosis in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

NO_START = 1e-6  # an `a` below it leaves nothing of the picture
STRONG, WEAK = 0.75, 0.55  # accuracies of the linear test from which the leak is called so
SHARED = 2.0  # standard deviations of training starts from pure noise that make a look common
FEWEST_HELD_OUT = 2  # pictures of a class for their variances to be used


def verdict_of(diagnosis: Diagnosis) -> str:
    """Whether offset fine-tuning is worth it, which K, and how many pictures look odd."""
    sentences = [_leak_sentence(diagnosis)]
    if max(a for _, a in diagnosis.first.values()) >= NO_START:
        sentences.append(_components_sentence(diagnosis))
    if diagnosis.flagged:
        look = "looks unlike its class" if diagnosis.flagged == 1 else "look unlike their class"
        sentences.append(f"{diagnosis.flagged} of {diagnosis.read} pictures {look}.")
    return " ".join(sentences)


def _leak_sentence(diagnosis: Diagnosis) -> str:
    t, a = max(diagnosis.first.values(), key=lambda step: step[1])
    if a < NO_START:
        return (
            f"At the first timestep, t = {t}, nothing is left of the picture (a = {a:.2g}): training starts "
            "are pure noise already, there is no leak, and offset fine-tuning changes nothing."
        )
    share = 100 * diagnosis.accuracy
    told = "more than 99" if share > 99 else f"{share:.0f}"
    tells = f"A linear test tells training starts from pure noise in {told} % of cases at t = {t}"
    if diagnosis.accuracy >= STRONG:
        means = "the base reads off its noise what a picture is like. " + _shared_sentence(diagnosis.shared)
    elif diagnosis.accuracy >= WEAK:
        means = "guessing makes it 50 %, so the leak is weak, and offset fine-tuning may gain some"
    else:
        means = "that is hardly more than guessing, so there is nothing to fix"
    return f"{tells}: {means}."


def _shared_sentence(shared: float) -> str:
    apart = f"pure noise lies {shared:.1f} of the pictures' own standard deviations from their mean (eq. 7)"
    if shared >= SHARED:
        return f"The pictures share a look, for {apart}: offset fine-tuning is worth it"
    return (
        f"But they share little of it, for {apart}: offset fine-tuning makes training and "
        "sampling agree, but there is no strong common look to keep"
    )


def _components_sentence(diagnosis: Diagnosis) -> str:
    k = diagnosis.visible
    known = max(len(one.variances) for one in diagnosis.classes)
    if not known:
        return "No components were looked at: K = 0, the class mean, is the safe choice."
    enough = sum(one.pictures for one in diagnosis.classes if one.held_out >= FEWEST_HELD_OUT)
    judged = "on held-out pictures"
    if 2 * enough <= sum(one.pictures for one in diagnosis.classes):
        judged = "by an estimate from the training pictures, as too few are held out"
    number = "No component rises" if k == 0 else "1 component rises" if k == 1 else f"{k} components rise"
    if k == known:
        number = "The one component known rises" if known == 1 else f"All {known} components known rise"
    rises = f"{number} above the noise floor {diagnosis.noise_floor:.3g} {judged}"
    if k == 0:
        return f"{rises}: the network cannot read any, so K = 0, the class mean."
    return f"{rises} (K = {k}): start.family=text uses them where captions tell; else K = 0, the class mean."

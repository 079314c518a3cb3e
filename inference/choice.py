"""Which class, and which x_start, each picture of a call begins from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..pca.distribution import ANY_CLASS, StartDistribution
from .noise import Generators, Initializer

STARTS = ("mean", "draw", "none")


class StartChoice(NamedTuple):
    """What a call says about its start; the fields mean what they mean in the pipelines' call."""

    class_name: str | Sequence[str | None] | None = None
    start: str = "mean"
    start_image: Any = None
    x_start: Tensor | None = None
    project_start: bool = False
    noise: Initializer | None = None

    @property
    def chooses_start(self) -> bool:
        """Whether a picture or latents are given to start from."""
        return self.start_image is not None or self.x_start is not None

    @property
    def replaces_noise(self) -> bool:
        """Whether latents other than diffusers' own are asked for, whatever the start distribution."""
        return self.chooses_start or self.noise is not None

    @property
    def needs_statistics(self) -> bool:
        """Whether the start is a class's mean, a draw or a projection."""
        return self.project_start if self.chooses_start else self.start != "none"

    def needs_text(self, distribution: StartDistribution | None) -> bool:
        """Whether the start follows from the text."""
        follows = self.needs_statistics and not self.chooses_start
        return distribution is not None and distribution.needs_text and follows


def check_choice(
    distribution: StartDistribution | None, choice: StartChoice, *, latents: Tensor | None
) -> None:
    """Refuses choices that contradict each other, before anything is computed.

    Raises ValueError on latents beside a choice, two chosen starts, an unknown start, and on what needs a
    start distribution where there is none.
    """
    if choice.start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {choice.start!r}")
    values = choice._replace(start=None)._asdict()  # type: ignore[arg-type]
    given = [name for name, value in values.items() if value is not None and value is not False]
    if latents is not None and given:
        raise ValueError(f"latents must be the only start, got {given[0]} beside them")
    if "start_image" in given and "x_start" in given:
        raise ValueError("x_start must not be given beside start_image, got both")
    if "project_start" in given and not choice.chooses_start:
        raise ValueError("project_start must come with start_image or x_start, got neither")
    if choice.start == "draw":
        given.append("start='draw'")
    needy = [name for name in given if name in ("class_name", "project_start", "start='draw'")]
    if needy and distribution is None:
        raise ValueError(f"{needy[0]} must come with a start distribution, got a pipeline without one")


def choose_start(
    distribution: StartDistribution | None,
    prompts: Sequence[str | None],
    num_images: int,
    choice: StartChoice,
    *,
    size: tuple[int, int],
    generator: Generators = None,
    text_embeds: Tensor | None = None,
) -> Tensor | None:
    """x_start (B, C, H, W), float32 scaled latents on the CPU, of B = len(prompts) * num_images pictures.

    The choice's x_start: these latents (C, H, W), or one, one a prompt or one a picture of them, as they are
    or projected on the class's components. Without: the expected start ("mean") at this size (H, W), a "draw"
    for each picture, or None for "none".
    text_embeds: (len(prompts), E), for a distribution that depends on text.
    Raises ValueError as `resolve_classes` does and on another number of latents.
    """
    chosen = None if choice.x_start is None else _one_a_picture(choice.x_start, len(prompts), num_images)
    if distribution is None or not choice.needs_statistics:
        return chosen
    class_ids = resolve_classes(distribution, prompts, choice.class_name, size=size, any_class=chosen is None)
    class_ids = class_ids.repeat_interleave(num_images)
    text = None if text_embeds is None else text_embeds.repeat_interleave(num_images, dim=0)
    if chosen is not None:
        return distribution.project(chosen, class_ids).cpu()
    if choice.start == "mean":
        return distribution.expected(class_ids, text_embeds=text, size=size).cpu()
    if isinstance(generator, Sequence):
        texts = [None] * len(class_ids) if text is None else text.split(1)
        one_each = zip(class_ids.split(1), texts, generator, strict=True)
        drawn = [distribution.sample(ids, g, text_embeds=own, size=size) for ids, own, g in one_each]
        return torch.cat(drawn).cpu()
    return distribution.sample(class_ids, generator, text_embeds=text, size=size).cpu()


def resolve_classes(
    distribution: StartDistribution,
    prompts: Sequence[str | None],
    class_name: str | Sequence[str | None] | None = None,
    *,
    size: tuple[int, int] | None = None,
    any_class: bool = True,
) -> Tensor:
    """A class id for each prompt: by name, else the only class there is, else by caption prefix.

    A pooled mixture needs no class: `ANY_CLASS` where none is named, unless any_class is false.
    Raises ValueError, listing the classes, on an unknown name or a prompt that tells no class, on a list
    of names that does not match the prompts, and on a class without pictures at this size (H, W).
    """
    names: list[str | None]
    if class_name is None or isinstance(class_name, str):
        names = [class_name] * len(prompts)
    else:
        names = list(class_name)
    if len(names) != len(prompts):
        raise ValueError(
            f"class_name must be one, or one for each of {len(prompts)} prompts, got {len(names)}"
        )
    only = distribution.class_names[0] if len(distribution.class_names) == 1 else None
    ids = []
    for name, prompt in zip(names, prompts, strict=True):
        if any_class and distribution.family == "pooled" and name is None:
            ids.append(ANY_CLASS)
            continue
        known = name or only or distribution.class_of_caption(prompt or "")
        if known is None:
            raise ValueError(
                f"class_name must be one of {', '.join(distribution.class_names)}, "
                f"got None and no caption prefix begins the prompt {prompt!r}"
            )
        ids.append(distribution.class_id(known, size=size))
    return torch.tensor(ids)


def _one_a_picture(x_start: Tensor, num_prompts: int, num_images: int) -> Tensor:
    total = num_prompts * num_images
    x_start = x_start.detach().float().cpu()
    x_start = x_start if x_start.ndim == 4 else x_start[None]
    if len(x_start) == total:
        return x_start
    if len(x_start) in (1, num_prompts):
        return x_start.repeat_interleave(total // len(x_start), dim=0)
    raise ValueError(
        f"x_start must be one, one for each of {num_prompts} prompts or one for each of {total} pictures, "
        f"got {len(x_start)}"
    )

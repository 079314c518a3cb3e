"""Which class, and which x_start, each picture of a call begins from."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..pca import StartDistribution
from .noise import Generators

STARTS = ("mean", "draw", "none")


def check_choices(
    distribution: StartDistribution | None, *, latents: Tensor | None, start: str, choices: Mapping[str, Any]
) -> None:
    """Refuses choices that contradict each other, before anything is computed.

    choices: a call's class_name, project_start, start_image, x_start, noise by name; None, False: absent.
    Raises ValueError on latents beside a choice, two chosen starts, an unknown start, and on what needs a
    start distribution where there is none.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    given = [name for name, value in choices.items() if value is not None and value is not False]
    if latents is not None and given:
        raise ValueError(f"latents must be the only start, got {given[0]} beside them")
    if "start_image" in given and "x_start" in given:
        raise ValueError("x_start must not be given beside start_image, got both")
    if "project_start" in given and not {"start_image", "x_start"} & set(given):
        raise ValueError("project_start must come with start_image or x_start, got neither")
    if start == "draw":
        given.append("start='draw'")
    needy = [name for name in given if name in ("class_name", "project_start", "start='draw'")]
    if needy and distribution is None:
        raise ValueError(f"{needy[0]} must come with a start distribution, got a pipeline without one")


def choose_start(
    distribution: StartDistribution | None,
    prompts: Sequence[str | None],
    num_images: int,
    *,
    class_name: str | Sequence[str | None] | None = None,
    start: str = "mean",
    x_start: Tensor | None = None,
    project_start: bool = False,
    generator: Generators = None,
) -> Tensor | None:
    """x_start (B, C, H, W), float32 scaled latents on the CPU, of B = len(prompts) * num_images pictures.

    x_start: these latents (C, H, W), or one, one a prompt or one a picture of them, as they are or projected
    on the class's components. Without: the class's "mean", a "draw" for each picture, or None for "none".
    Raises ValueError as `resolve_classes` does and on another number of latents.
    """
    chosen = None if x_start is None else _one_a_picture(x_start, len(prompts), num_images)
    if distribution is None or (start == "none" if chosen is None else not project_start):
        return chosen
    class_ids = resolve_classes(distribution, prompts, class_name).repeat_interleave(num_images)
    if chosen is not None:
        return distribution.project(chosen, class_ids).cpu()
    if start == "mean":
        return distribution.mean[class_ids.to(distribution.mean.device)].cpu()
    if isinstance(generator, Sequence):
        one_each = zip(class_ids.split(1), generator, strict=True)
        return torch.cat([distribution.sample(ids, g) for ids, g in one_each]).cpu()
    return distribution.sample(class_ids, generator).cpu()


def resolve_classes(
    distribution: StartDistribution,
    prompts: Sequence[str | None],
    class_name: str | Sequence[str | None] | None = None,
) -> Tensor:
    """A class id for each prompt: by name, else the only class there is, else by caption prefix.

    Raises ValueError, listing the classes, on an unknown name or a prompt that tells no class, and on a list
    of names that does not match the prompts.
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
        known = name or only or distribution.class_of_caption(prompt or "")
        if known is None:
            raise ValueError(
                f"class_name must be one of {', '.join(distribution.class_names)}, "
                f"got None and no caption prefix begins the prompt {prompt!r}"
            )
        ids.append(distribution.class_id(known))
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

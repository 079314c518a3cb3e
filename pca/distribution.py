"""The start distribution as a diffusers component. Self-contained: checkpoints carry a copy of this file."""

import importlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

# Each is written only where readers of the one before would go wrong unnoticed: 2 where a class has no
# pictures, 3 where the family is not "pca".
FORMAT_VERSION = 3
FAMILIES = ("pca", "pooled", "diagonal", "dct", "text")
ANY_CLASS = -1  # a class id that leaves the class to a pooled mixture's draw
SOURCE_FILE = "start_distribution.py"


class StartDistribution(ModelMixin, ConfigMixin):
    """Per class a Gaussian over scaled latents: mean + sum_i xi_i component_i, xi_i ~ N(0, variance_i).

    The family says what is fitted and drawn: "pca" the leading principal components, none of them for the
    class mean; "pooled" the same with the class itself drawn by frequency; "diagonal" every latent value on
    its own; "dct" all low frequencies; "text" principal components of which the text tells the expected xi.

    Attributes (float32, whatever `.to(dtype)` says; scaled latents):
        mean: (n_classes, C, H, W)
        components: (n_classes, K, C, H, W), orthonormal within a class
        variances: (n_classes, K)
        pixel_variances: (n_classes, C, H, W), family "diagonal" alone
        text_weight, text_bias, residual_variances: (n_classes, K, E), (n_classes, K), (n_classes, K), family
            "text" alone: xi ~ N(text_weight @ text_embeds + text_bias, residual_variances)
        buckets: the start distributions of further sizes by (H, W) of their latents, see `add_bucket`
    Everything else stands in `config`. Source: METHODS 1, "Start distribution Q" and "More start
    distributions".
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    pixel_variances: Tensor
    text_weight: Tensor
    text_bias: Tensor
    residual_variances: Tensor
    buckets: "dict[tuple[int, int], StartDistribution]"

    @register_to_config
    def __init__(
        self,
        class_names: list[str],
        latent_shape: list[int],
        num_components: int = 0,
        counts: list[int] | None = None,
        caption_prefixes: dict[str, str] | None = None,
        num_train_timesteps: int = 1000,
        skip_interval: int = 50,
        offset_from: int = 950,
        samplers: list[list] | None = None,
        vae_fingerprint: dict[str, Any] | None = None,
        image_transform: dict[str, Any] | None = None,
        format_version: int = 1,
        bucket_sizes: list[list[int]] | None = None,
        family: str = "pca",
        text_width: int = 0,
        text_fingerprint: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if format_version > FORMAT_VERSION:
            raise ValueError(f"format_version must be at most {FORMAT_VERSION} here, got {format_version}")
        if not class_names or len(set(class_names)) < len(class_names):
            raise ValueError(f"class_names must be distinct and at least one, got {list(class_names)}")
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
        n, k, shape = len(class_names), num_components, tuple(latent_shape)
        self.register_buffer("mean", torch.zeros(n, *shape))
        self.register_buffer("components", torch.zeros(n, k, *shape))
        self.register_buffer("variances", torch.zeros(n, k))
        if family == "diagonal":
            self.register_buffer("pixel_variances", torch.zeros(n, *shape))
        if family == "text":
            self.register_buffer("text_weight", torch.zeros(n, k, text_width))
            self.register_buffer("text_bias", torch.zeros(n, k))
            self.register_buffer("residual_variances", torch.zeros(n, k))
        self.buckets = {}

    @classmethod
    def fit(
        cls,
        latents: Tensor | Iterable[tuple[Tensor, Tensor]],
        class_ids: Tensor | None = None,
        *,
        class_names: Sequence[str],
        components: int = 0,
        family: str = "pca",
        num_train_timesteps: int = 1000,
        skip_interval: int = 50,
        offset_from: int | None = None,
        samplers: Iterable[Sequence] = (),
        **options: Any,
    ) -> "StartDistribution":
        """The start distribution of a catalogue's scaled latents.

        latents: (N, C, H, W) with class_ids (N,), or a re-iterable of (latents, class_ids) batches;
        components: K; offset_from: first timestep of the offset range, T - skip_interval if None;
        samplers: (scheduler, steps, spacing) each; options: `statistics`, `band`, `text_embeds`,
        `allow_empty`, `processes` and `device` as `fit_family` takes them, and further values to keep
        (caption_prefixes, vae_fingerprint, image_transform, text_fingerprint).
        Raises ValueError as `fit_family` does.
        """
        # By name, since diffusers would look for a relative import's file beside the copy in a checkpoint.
        families = importlib.import_module("onbrand.pca.families")
        told = {key: options.pop(key) for key in families.OPTIONS if key in options}
        fitted = families.fit_family(
            family, latents, class_ids, class_names=class_names, components=components, **told
        )
        written = 3 if family != "pca" else 2 if 0 in fitted.counts else 1
        distribution = cls(
            class_names=list(class_names),
            latent_shape=list(fitted.tensors["mean"].shape[1:]),
            num_components=fitted.tensors["variances"].shape[1],
            counts=fitted.counts,
            num_train_timesteps=num_train_timesteps,
            skip_interval=skip_interval,
            offset_from=num_train_timesteps - skip_interval if offset_from is None else offset_from,
            samplers=[list(sampler) for sampler in samplers],
            format_version=written,
            family=family,
            text_width=fitted.tensors["text_weight"].shape[2] if family == "text" else 0,
            **options,
        )
        distribution.load_state_dict(fitted.tensors)
        return distribution

    @property
    def family(self) -> str:
        """One of FAMILIES."""
        return self.config["family"]

    @property
    def needs_text(self) -> bool:
        """Whether starts depend on text, so that `text_embeds` must be given."""
        return self.family == "text"

    @property
    def default_start(self) -> str:
        """How sampling starts if nothing is said: from a "draw" where there is something to draw, else from
        the "mean"; with text from the expected start of the text."""
        varies = self.variances.shape[1] > 0 or self.family in ("pooled", "diagonal")
        return "draw" if varies and not self.needs_text else "mean"

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of their ids."""
        return list(self.config["class_names"])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the latents."""
        return tuple(self.config["latent_shape"])

    @property
    def offset_from(self) -> int:
        """First timestep of the offset range, T if the range is empty."""
        return self.config["offset_from"]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of the latents there are statistics for, its own size first."""
        return [(self.latent_shape[1], self.latent_shape[2]), *self.buckets]

    def at(self, height: int, width: int) -> "StartDistribution":
        """The start distribution of this size (latents). Raises ValueError, with the sizes, on another."""
        if (height, width) == self.sizes[0]:
            return self
        if (height, width) not in self.buckets:
            raise ValueError(f"latent size must be one of {_listed(self.sizes)}, got {height}x{width}")
        return self.buckets[height, width]

    def add_bucket(self, distribution: "StartDistribution") -> None:
        """Keeps the start distribution of a further size, in place of the one it had of that size.

        Raises ValueError on its own size and on other class names, channels, components, T or offset range.
        """
        size = distribution.sizes[0]
        if size == self.sizes[0]:
            raise ValueError(f"bucket must have another size than {_listed([size])}, got the same")
        theirs = _shared(distribution)
        for key, ours in _shared(self).items():
            if theirs[key] != ours:
                raise ValueError(
                    f"bucket {key} must be {ours} as at {_listed(self.sizes[:1])}, got {theirs[key]}"
                )
        self.buckets[size] = distribution
        self.register_to_config(bucket_sizes=[list(size) for size in self.buckets])

    def class_id(self, name: str, *, size: tuple[int, int] | None = None) -> int:
        """The id of a class with pictures at this size (latents), its own size if None.

        Raises ValueError on an unknown name, with the nearest and all names; on a class without pictures
        there, with the sizes where it has some; and as `at` does.
        """
        if name in self.class_names:
            class_id = self.class_names.index(name)
            size = size or self.sizes[0]
            if not self.at(*size)._has_pictures(class_id):
                others = [other for other in self.sizes if self.at(*other)._has_pictures(class_id)]
                raise ValueError(
                    f"class_name must have pictures at size {_listed([size])}, got {name!r} with none "
                    f"(it has them at {_listed(others) or 'no size'})"
                )
            return class_id
        nearest = get_close_matches(name, self.class_names, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"class_name must be one of {', '.join(self.class_names)}, got {name!r}{hint}")

    def class_of_caption(self, caption: str) -> str | None:
        """The class with the longest prefix that begins the caption, None if there is no one such class."""
        caption = caption.strip().casefold()
        matches: dict[str, list[str]] = {}
        for name, prefix in (self.config["caption_prefixes"] or {}).items():
            prefix = prefix.strip().casefold()
            # A prefix ends where a word ends: "a mug" does not begin "a mugshot".
            if prefix and caption.startswith(prefix) and not caption[len(prefix) : len(prefix) + 1].isalnum():
                matches.setdefault(prefix, []).append(name)
        longest = matches[max(matches, key=len)] if matches else []
        return longest[0] if len(longest) == 1 else None

    def expected(
        self, class_ids: Tensor, *, text_embeds: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """The expected x_start (B, C, H, W), float32 scaled latents: the class mean, or with text its own.

        class_ids, text_embeds, size and Raises: as `sample`. For `ANY_CLASS` the mean of all pictures.
        """
        if size is not None and size != self.sizes[0]:
            return self.at(*size).expected(class_ids, text_embeds=text_embeds)
        class_ids = self._checked_ids(class_ids, any_class=True)
        if self.family == "pooled":
            weights = self._frequencies.to(self.mean)
            pooled = _einsum("n,nchw->chw", weights / weights.sum(), self.mean)
            return torch.where((class_ids == ANY_CLASS).view(-1, 1, 1, 1), pooled, self.mean[class_ids])
        return self._from_scores(self._expected_scores(class_ids, text_embeds), class_ids)

    def sample(
        self,
        class_ids: Tensor,
        generator: torch.Generator | None = None,
        *,
        text_embeds: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Draws x_start (B, C, H, W), float32 scaled latents, for class_ids (B,).

        What is random is drawn in float32 on the CPU, so a seed means the same on every machine.
        class_ids: a pooled mixture takes `ANY_CLASS` too, and draws the class by its pictures' frequency.
        text_embeds: (B, E) pooled text embeddings; used, and needed, by the family "text" alone.
        size: (H, W) of the latents, its own if None. Raises ValueError on unknown ids, on text_embeds that
        are missing or of another shape, and as `at` does.
        """
        if size is not None and size != self.sizes[0]:
            return self.at(*size).sample(class_ids, generator, text_embeds=text_embeds)
        class_ids = self._checked_ids(class_ids, any_class=True)
        if self.family == "pooled":
            drawn = torch.multinomial(self._frequencies, len(class_ids), True, generator=generator)
            class_ids = torch.where(class_ids == ANY_CLASS, drawn.to(class_ids.device), class_ids)
        if self.family == "diagonal":
            xi = torch.randn(len(class_ids), *self.latent_shape, generator=generator).to(self.mean.device)
            return self.mean[class_ids] + xi * self.pixel_variances[class_ids].sqrt()
        xi = torch.randn(len(class_ids), self.variances.shape[1], generator=generator).to(self.mean.device)
        variances = self.residual_variances if self.needs_text else self.variances
        scores = self._expected_scores(class_ids, text_embeds) + xi * variances[class_ids].sqrt()
        return self._from_scores(scores, class_ids)

    def project(self, x_0: Tensor, class_ids: Tensor, *, text_embeds: Tensor | None = None) -> Tensor:
        """What training starts a picture from: of its class's points the nearest, mean + P^T P (x_0 - mean).

        x_0 itself for the family "diagonal", which reaches every point; of "text" the expected start where
        text_embeds are given. x_0: (B, C, H, W) scaled latents of one of its sizes; class_ids: (B,);
        text_embeds: (B, E) as in `sample`. Returns x_start, float32, shaped like x_0.
        Raises ValueError on latents of another shape, unknown ids and text_embeds of another shape.
        """
        height, width = x_0.shape[-2:]
        if (height, width) in self.buckets:
            return self.buckets[height, width].project(x_0, class_ids, text_embeds=text_embeds)
        if tuple(x_0.shape[1:]) != self.latent_shape:
            expected = " or ".join(f"(B, {self.latent_shape[0]}, {h}, {w})" for h, w in self.sizes)
            raise ValueError(f"latents must be shaped {expected}, got {tuple(x_0.shape)}")
        if len(class_ids) != len(x_0):
            raise ValueError(f"class_ids must be one id for each of {len(x_0)} latents, got {len(class_ids)}")
        if self.family == "diagonal":
            return x_0.to(self.mean)
        class_ids = self._checked_ids(class_ids)
        if self.needs_text and text_embeds is not None:
            return self.expected(class_ids, text_embeds=text_embeds)
        if not self.config["num_components"]:
            return self.mean[class_ids]
        centred = x_0.to(self.mean) - self.mean[class_ids]
        scores = _einsum("bkchw,bchw->bk", self.components[class_ids], centred)
        return self._from_scores(scores, class_ids)

    def _from_scores(self, scores: Tensor, class_ids: Tensor) -> Tensor:
        return self.mean[class_ids] + _einsum("bk,bkchw->bchw", scores, self.components[class_ids])

    def _expected_scores(self, class_ids: Tensor, text_embeds: Tensor | None) -> Tensor:
        if not self.needs_text:
            return self.mean.new_zeros(len(class_ids), self.variances.shape[1])
        shape = (len(class_ids), self.config["text_width"])
        if text_embeds is None or tuple(text_embeds.shape) != shape:
            got = None if text_embeds is None else tuple(text_embeds.shape)
            raise ValueError(f"text_embeds must be shaped {shape} for a text-conditioned start, got {got}")
        told = _einsum("bke,be->bk", self.text_weight[class_ids], text_embeds.to(self.mean))
        return told + self.text_bias[class_ids]

    @property
    def _frequencies(self) -> Tensor:
        return torch.tensor(self.config["counts"] or [1] * len(self.class_names)).float()

    def _has_pictures(self, class_id: int) -> bool:
        counts = self.config["counts"]
        return counts is None or counts[class_id] > 0

    def _checked_ids(self, class_ids: Tensor, *, any_class: bool = False) -> Tensor:
        lowest = ANY_CLASS if any_class and self.family == "pooled" else 0
        # Ids on a GPU are not looked at: reading them back would stall every training step.
        if class_ids.device.type == "cpu" and len(class_ids):
            low, high = int(class_ids.min()), int(class_ids.max())
            if low < lowest or high >= len(self.class_names):
                bad = high if high >= len(self.class_names) else low
                raise ValueError(f"class_ids must be in [0, {len(self.class_names)}), got {bad}")
        return class_ids.to(self.mean.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StartDistribution":
        """Follows a move to another device but not a cast: statistics stay float32."""

        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        for bucket in self.buckets.values():
            bucket._apply(fn, recurse)
        return super()._apply(move_only, recurse)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "StartDistribution":
        """Loads a saved start distribution, float32 whatever dtype is asked for, and its buckets.

        A local folder or a hub id, with diffusers' own options; safetensors alone are read.
        Raises ValueError naming the folder if its file is damaged, or lacks a tensor or has one too many.
        """
        kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "torch_dtype")}
        loaded = cls._load(pretrained_model_name_or_path, **kwargs)
        parent = kwargs.pop("subfolder", None) or ""
        for size in loaded.config["bucket_sizes"] or []:
            path, inner = pretrained_model_name_or_path, f"{parent}/{_listed([size])}".lstrip("/")
            if Path(path).is_dir():
                # diffusers would find the weights of the folder itself before those of its subfolder.
                path, inner = Path(path) / inner, ""
            loaded.buckets[tuple(size)] = cls._load(path, subfolder=inner or None, **kwargs)
        return loaded

    @classmethod
    def _load(cls, path: str | Path, **kwargs: Any) -> "StartDistribution":
        options = {"use_safetensors": True, **kwargs, "output_loading_info": True}
        try:
            loaded, found = super().from_pretrained(path, **options)
        except OSError as error:
            if not Path(path).is_dir():
                raise
            raise ValueError(f"start distribution in {path} must be readable, got {error}") from error
        wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
        if wrong:
            raise ValueError(
                f"start distribution in {path} must hold the tensors its config says, got others: {wrong}"
            )
        return loaded

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves config and tensors (safetensors) as diffusers does, and this file beside them.

        Each bucket goes into a folder <H>x<W> inside, without the file.
        """
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        for size, bucket in self.buckets.items():
            inside = Path(save_directory) / _listed([size])
            # by __class__: the name may mean another checkpoint's copy of this file by now
            super(__class__, bucket).save_pretrained(inside, **kwargs)  # type: ignore[misc, name-defined]
        copy = Path(save_directory) / SOURCE_FILE
        if copy.resolve() != Path(__file__).resolve():
            shutil.copyfile(__file__, copy)


def _einsum(equation: str, *tensors: Tensor) -> Tensor:
    """torch.einsum in the tensors' own precision, within autocast too."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        return torch.einsum(equation, *tensors)


def _listed(sizes: Iterable[Sequence[int]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes)


def _shared(distribution: StartDistribution) -> dict[str, Any]:
    """What all buckets have in common."""
    keys = ("family", "num_components", "num_train_timesteps", "offset_from")
    config = {key: distribution.config[key] for key in keys}
    return {"class_names": distribution.class_names, "channels": distribution.latent_shape[0], **config}

"""The start distribution as an optional component of a diffusers pipeline: checked, saved, loaded."""

import functools
import importlib
import inspect
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin

from ..pca.distribution import StartDistribution
from ..pca.fingerprint import check_text, check_vae
from .original_names import restore_original_names
from .text import pooled_text

logger = logging.getLogger(__name__)

COMPONENT = "start_distribution"
PIPELINE_FILE = "pipeline.py"
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
NOT_GIVEN: Any = object()


class StartComponent:
    """Adds the component to a pipeline class of diffusers, which is named last among the bases."""

    start_distribution: StartDistribution | None
    vae: Any
    unet: Any
    register_modules: Any
    register_to_config: Any
    config_name: str
    source_text: str | None = None  # what `pipeline.py` says of itself

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Adds the component to what diffusers reads off a pipeline's class: two lists and a signature."""
        super().__init_subclass__(**kwargs)
        plain: Any = cls.__bases__[-1]
        if issubclass(plain, DiffusionPipeline) and not issubclass(plain, StartComponent):
            changed: Any = cls
            changed._optional_components = [*plain._optional_components, COMPONENT]
            changed._exclude_from_cpu_offload = [*plain._exclude_from_cpu_offload, COMPONENT]
            changed.__init__ = _with_component(plain.__init__)

    def set_start_distribution(self, start_distribution: StartDistribution | None) -> None:
        """Attaches a start distribution after checking that it belongs to this VAE; None detaches it.

        A pipeline loaded without its VAE, to encode prompts alone, takes any.
        Raises ValueError, with both values, on another VAE, another number of latent channels, or other text
        encoders where it depends on text.
        """
        if start_distribution is not None and self.vae is not None:
            ours, theirs = start_distribution.latent_shape[0], self.vae.config.latent_channels
            if ours != theirs:
                raise ValueError(
                    f"VAE latent_channels must be {ours} as in the start distribution, got {theirs}"
                )
            check_vae(start_distribution.config["vae_fingerprint"], self.vae)
            if start_distribution.needs_text:
                told = partial(pooled_text, self, full_precision=True)
                check_text(start_distribution.config["text_fingerprint"], told)
        self.register_modules(start_distribution=start_distribution)

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype: the start distribution is float32 in any case."""
        return self.unet.dtype if self.unet is not None else super().dtype  # type: ignore[misc]

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Saves as diffusers does, a start distribution that was assigned as an attribute too."""
        # diffusers saves what its config names, which stays None where one is assigned in place of None
        self.register_modules(start_distribution=self.start_distribution)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    def save_config(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes model_index.json and what makes the folder load everywhere; `save_pretrained` calls it last.

        With a start distribution that is `pipeline.py`, which stands for onbrand where it is not installed;
        without one the folder is an ordinary one of diffusers' own class. Text encoders keep the tensor names
        that other tools expect.
        """
        folder = Path(save_directory)
        if self.start_distribution is not None:
            # diffusers would write the full module path, which only loads where that module is installed.
            self.register_to_config(start_distribution=(COMPONENT, type(self.start_distribution).__name__))
        super().save_config(save_directory, *args, **kwargs)  # type: ignore[misc]
        index = json.loads((folder / self.config_name).read_text())
        index.pop(f"_{COMPONENT}", None)  # left by from_pipe; the hub would look for its file
        index.pop("_name_or_path", None)
        if self.start_distribution is not None:
            _replace_text(folder / PIPELINE_FILE, _source(type(self)))
        else:
            index.pop(COMPONENT, None)
            index["_class_name"] = plain_class(type(self)).__name__
        _replace_text(folder / self.config_name, json.dumps(index, indent=2) + "\n")
        for name in ("text_encoder", "text_encoder_2"):
            if type(getattr(self, name, None)).__name__.startswith("CLIPTextModel"):
                restore_original_names(folder / name)
        for file in folder.glob("*/config.json"):
            _make_portable(file)

    def enable_group_offload(
        self, *args: Any, exclude_modules: str | list[str] | None = None, **kwargs: Any
    ) -> None:
        """As diffusers does, the start distribution apart: its tensors are read outside of a forward pass."""
        named = [exclude_modules] if isinstance(exclude_modules, str) else exclude_modules or []
        own = [] if self.start_distribution is None else [COMPONENT]
        super().enable_group_offload(*args, exclude_modules=[*named, *own], **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Loads a folder or hub id as diffusers does, with its start distribution where it has one.

        Without one the pipeline is diffusers' own, and the log says so. No trust flag is needed.
        Raises ValueError if the start distribution belongs to another VAE.
        """
        start_distribution = kwargs.pop(COMPONENT, NOT_GIVEN)
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        pipeline = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, **{COMPONENT: None}, **kwargs
        )
        if start_distribution is NOT_GIVEN:
            index = cls.load_config(pretrained_model_name_or_path, **hub)  # type: ignore[attr-defined]
            start_distribution = None
            if (index.get(COMPONENT) or [None])[0] is not None:
                start_distribution = StartDistribution.from_pretrained(
                    pretrained_model_name_or_path, subfolder=COMPONENT, **hub
                )
            else:
                logger.warning(
                    "%s has no start distribution: it samples as a plain pipeline",
                    pretrained_model_name_or_path,
                )
        pipeline.set_start_distribution(start_distribution)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """A pipeline of this class from another's components, its start distribution too if it has one.

        As in diffusers the models are shared, and cast to `torch_dtype`, float32 if it is not given.
        """
        kwargs.setdefault(COMPONENT, getattr(pipeline, COMPONENT, None))
        return super().from_pipe(pipeline, **kwargs)  # type: ignore[misc]


def plain_class(pipeline_class: type) -> type:
    """diffusers' own class behind one with the component."""
    order = pipeline_class.__mro__
    return order[order.index(StartComponent) + 1]


def _with_component(plain_init: Callable[..., None]) -> Callable[..., None]:
    """diffusers' __init__ with one more optional component, in its signature too."""

    @functools.wraps(plain_init)
    def __init__(
        self: Any, *components: Any, start_distribution: StartDistribution | None = None, **named: Any
    ) -> None:
        plain_init(self, *components, **named)
        self.set_start_distribution(start_distribution)

    # diffusers compares types: a checkpoint's own copy of StartDistribution is another class of that name.
    annotation = ModelMixin | None
    added = inspect.Parameter(COMPONENT, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    signature = inspect.signature(plain_init)
    changed: Any = __init__
    changed.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])
    changed.__annotations__ = {**plain_init.__annotations__, COMPONENT: annotation}
    return changed


def _source(pipeline_class: Any) -> str:
    """The text of `pipeline.py`: put together from the modules here, or its own where it came from one."""
    if pipeline_class.source_text is not None:
        return pipeline_class.source_text
    plain = plain_class(pipeline_class)
    made = next(ours for ours in pipeline_class.__mro__ if plain in ours.__bases__)
    # by name, as a relative import would need that file too wherever this one is carried
    return importlib.import_module("onbrand.inference.bundle").pipeline_source(made)


def _make_portable(config_file: Path) -> None:
    """Takes the path it was loaded from out of a component's config, and lets text encoders load in float32.

    transformers loads in the dtype that the config names, diffusers in float32: unless somebody says
    otherwise a folder of half precision would become a pipeline of two dtypes.
    """
    config = json.loads(config_file.read_text())
    config.pop("_name_or_path", None)
    for key in {"dtype", "torch_dtype"} & set(config):
        config[key] = "float32"
    _replace_text(config_file, json.dumps(config, indent=2) + "\n")


def _replace_text(file: Path, text: str) -> None:
    beside = file.with_name(f"{file.name}.partial")
    beside.write_text(text)
    beside.replace(file)

"""What a run can be told: five sections, every key typed, every default stated here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Targets = Annotated[list[str], Field(min_length=1)]
Side = Annotated[int, Field(ge=8, multiple_of=8)]

STUDIO = "photo-studio"  # the source that is drawn by code
COLUMN_KEYS = ("image_columns", "caption_column", "class_column", "image_classes")

# Keys of other trainers that move the start of sampling by a scheme of their own.
OTHER_STARTS = {
    **dict.fromkeys(
        ("noise_offset", "offset_noise", "multires_noise_iterations", "pyramid_noise", "ip_noise_gamma"),
        "it shifts the noise by a scheme of its own, so training would start from another distribution than "
        "sampling; the start distribution does that job",
    ),
    **dict.fromkeys(
        ("zero_terminal_snr", "rescale_betas_zero_snr"),
        "with alpha_T = 0 the last latents carry no image, so there is no start to train from; a base whose "
        "own schedule has it is taken as it is",
    ),
}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class LoraConfig(Section):
    """Low-rank adapters, through peft."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 16
    targets: Targets = ["to_q", "to_k", "to_v", "to_out.0"]  # of the UNet; [all]: of its blocks all layers
    text_encoder_targets: Targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dora: bool = False  # weight-decomposed: a trained magnitude beside the direction
    rslora: bool = False  # scaled by alpha / sqrt(rank) instead of alpha / rank


class TokenConfig(Section):
    """A new word, its embedding trained and nothing else of the text encoder (textual inversion)."""

    word: Annotated[str, Field(pattern=r"^\S+$")] = "<brand>"  # put before every caption that lacks it
    initial: str = "product"  # the word whose embedding it starts from


class ControlNetConfig(Section):
    """A ControlNet trained on condition pictures."""

    source: str = "unet"  # unet: initialised from the base's UNet; else a ControlNet's folder or hub id
    condition: Literal["column", "mask", "segment"] = "segment"
    column: str | None = None  # of condition pictures, or of masks (white: keep)

    @model_validator(mode="after")
    def _column_if_needed(self) -> ControlNetConfig:
        if (self.condition == "segment") == (self.column is not None):
            rule = "left out" if self.condition == "segment" else "a column of pictures"
            raise ValueError(f"column must be {rule} with condition {self.condition}, got {self.column!r}")
        return self


class ModelConfig(Section):
    """Which model is fine-tuned, and what of it."""

    base: str = "tiny-base"  # the packaged laboratory model, a hub id, a diffusers folder or a single file
    base_config: str | None = None  # of a single file: folder or hub id of its architecture
    method: Literal["full", "lora", "attention", "frozen"] = "full"  # what of the UNet is trained
    text_encoder: Literal["frozen", "full", "lora", "token"] = "frozen"
    lora: LoraConfig = LoraConfig()
    token: TokenConfig = TokenConfig()
    controlnet: ControlNetConfig | None = None

    @model_validator(mode="after")
    def _something_is_trained(self) -> ModelConfig:
        if self.method == "frozen" and self.text_encoder == "frozen" and self.controlnet is None:
            raise ValueError("method, text_encoder or controlnet must train something, got all frozen")
        return self


class StudioConfig(Section):
    """The built-in catalogue, read when data.source is photo-studio."""

    pictures: Positive = 2000
    seed: Annotated[int, Field(ge=0)] = 0
    look: Literal["on-brand", "wild"] = "on-brand"


class DataConfig(Section):
    """The catalogue: where it is, which columns matter, how pictures become tensors."""

    source: str = STUDIO  # photo-studio, an image folder, parquet files or a hub id
    resolution: Side = 64
    fit: Literal["crop", "pad"] = "pad"
    backdrop: str = "white"
    image_columns: list[str] = ["image"]
    caption_column: str = "text"
    class_column: str | None = None  # None: a column named class if there is one, else the folder's name
    image_classes: dict[str, str] | None = None
    class_prefixes: dict[str, str] = {}
    on_bad_image: Literal["drop", "error"] = "drop"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split: str = "train"  # of a hub data set
    limit: Positive | None = None
    buckets: list[tuple[Side, Side]] | None = None  # [height, width] each; None: resolution x resolution
    sampling: Literal["natural", "balanced"] = "natural"  # balanced: every class equally often
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = {}  # times the class's share
    cache_dir: str | None = None  # latents; default: a folder `latents` beside the run
    studio: StudioConfig = StudioConfig()

    @model_validator(mode="after")
    def _the_studio_has_no_columns(self) -> DataConfig:
        for key in COLUMN_KEYS if self.source == STUDIO else ():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} must be left out with source {STUDIO}, which has no columns, got {value!r}"
                )
        return self


class SamplerConfig(Section):
    """One sampler that the checkpoint will be used with."""

    scheduler: str
    steps: Positive
    spacing: Literal["leading", "trailing", "linspace"] | None = None  # None: the checkpoint's own


class StartConfig(Section):
    """The start distribution and the timesteps trained from it."""

    enabled: bool = True  # false: plain fine-tuning; the statistics are fitted all the same
    family: Literal["pca", "pooled", "diagonal", "dct", "text"] = "pca"
    components: Annotated[int, Field(ge=0)] = 0  # K, families pca, pooled and text; 0: the class mean
    band: Positive = 4  # low frequencies an axis, family dct
    skip_interval: Positive = 50
    offset_from: Annotated[int, Field(ge=1)] | None = None  # None: from the samplers below
    # None: DDIM 20, DPM-Solver++ 20 and 25, Euler 30
    samplers: Annotated[list[SamplerConfig], Field(min_length=1)] | None = None
    emphasis: Share | None = None  # share of timesteps drawn from the offset range; None: uniform

    @model_validator(mode="after")
    def _components_fit_the_family(self) -> StartConfig:
        if self.family in ("diagonal", "dct") and self.components:
            raise ValueError(f"components must be 0 with family {self.family}, got {self.components}")
        if self.family == "text" and not self.components:
            raise ValueError("components must be at least 1 with family text, got 0")
        return self


class TrainConfig(Section):
    """The optimisation."""

    steps: Positive = 1000
    batch_size: Positive = 16  # per process
    gradient_accumulation: Positive = 1
    optimizer: Literal["adamw", "adamw8bit", "prodigy", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5  # 1.0 for prodigy, which finds its own
    text_encoder_learning_rate: Annotated[float, Field(gt=0)] | None = None  # None: learning_rate
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    caption_dropout: Share = 0.1
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    sample_posterior: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # 0: no averaging
    max_loss: Annotated[float, Field(gt=0)] = 10.0  # a mean above it stops the run; predicting zero gives 1
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    cache_text: bool | None = None  # text embeddings on disk; None: if the encoders are frozen and it fits
    workers: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 10
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 2
    preview_every: Positive = 500
    validate_every: Positive = 500
    validation_pictures: Positive = 256

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # as YAML reads it

    @model_validator(mode="after")
    def _prodigy_finds_one_rate(self) -> TrainConfig:
        if self.optimizer == "prodigy" and self.learning_rate < 0.1:
            raise ValueError(
                f"learning_rate must be about 1 with prodigy, which multiplies it, got {self.learning_rate}"
            )
        text_rate = self.text_encoder_learning_rate
        if self.optimizer == "prodigy" and text_rate not in (None, self.learning_rate):
            raise ValueError(f"text_encoder_learning_rate must be left out with prodigy, got {text_rate}")
        return self


class AuditConfig(Section):
    """The pictures generated and judged when training is done."""

    pictures: Positive = 64
    scheduler: str = "DDIMScheduler"
    steps: Positive = 20
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0


class RunConfig(Section):
    """Where a run lives and what it reports."""

    dir: str = ""  # default: runs/<config name>
    seed: Annotated[int, Field(ge=0)] = 0
    processes: Positive | None = None  # how many the run is meant for; another number is an error
    tracker: Literal["wandb", "tensorboard", "none"] = "none"
    audit: AuditConfig = AuditConfig()


class Config(Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _columns_and_classes_agree(self) -> Config:
        unknown = set(self.data.image_classes or {}) - set(self.data.image_columns)
        if unknown:
            raise ValueError(
                f"data.image_classes must name columns of data.image_columns {self.data.image_columns}, "
                f"got {sorted(unknown)}"
            )
        return self

    @model_validator(mode="after")
    def _text_stays_what_was_fitted(self) -> Config:
        if self.start.family == "text" and self.model.text_encoder != "frozen":
            raise ValueError(
                "model.text_encoder must be frozen with start.family text, fitted to its embeddings, "
                f"got {self.model.text_encoder}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

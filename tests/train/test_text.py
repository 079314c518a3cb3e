"""What the denoiser reads of captions and conditions, against the pipelines of diffusers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import local
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from onbrand.data.processes import Processes
from onbrand.data.shards import read_entries
from onbrand.inference.text import pooled_text, text_encoders, tokenize, tokenizers
from onbrand.train import text_cache
from onbrand.train.denoiser import Denoiser
from onbrand.train.text import TokenIds, embed
from onbrand.train.text_cache import (
    CachedText,
    cache_pooled_text,
    cache_text,
    embeddings_size,
    should_cache,
    texts_of,
)

CAPTIONS = ["a mug", "a red mug", "a mug", "blue bag"]
DROPPED = [False, True, False, True]


@pytest.fixture(scope="module")
def sd1(tiny: ModuleType) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**tiny.make_components())


@pytest.fixture(scope="module")
def sdxl(tiny: ModuleType) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(**tiny.make_xl_components())


def denoiser_of(pipeline: Any, controlnet: Any = None, **options: object) -> Denoiser:
    """A denoiser over a pipeline's own networks."""
    options = {"pixels_per_latent": pipeline.vae_scale_factor} | options
    return Denoiser(pipeline.unet, text_encoders(pipeline), controlnet, **options)


@pytest.fixture
def shown(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Four noisy latents at four timesteps, of which the second and fourth lost their caption."""
    return {
        "noisy_latents": torch.randn(4, 4, 8, 16, generator=generator),
        "timesteps": torch.tensor([3, 250, 700, 999]),
        "dropped": torch.tensor(DROPPED),
    }


def ids_of(pipeline: Any, captions: list[str], dropped: list[bool]) -> torch.Tensor:
    texts = TokenIds(pipeline, captions)
    return torch.stack([texts[None if lost else row]["input_ids"] for row, lost in enumerate(dropped)])


def xl_embeds(pipeline: Any, captions: list[str]) -> tuple[torch.Tensor, ...]:
    """What the pipeline itself computes: hidden and pooled, then those of its unconditional branch."""
    hidden, negative, pooled, negative_pooled = pipeline.encode_prompt(
        captions, device="cpu", do_classifier_free_guidance=True
    )
    return hidden, pooled, negative, negative_pooled


@torch.no_grad()
def test_sd1_is_the_unet_under_its_text_encoder(sd1: Any, shown: dict) -> None:
    ids = ids_of(sd1, CAPTIONS, DROPPED)
    captions = ["" if lost else text for text, lost in zip(CAPTIONS, DROPPED, strict=True)]
    hidden, _ = sd1.encode_prompt(captions, "cpu", 1, False)
    expected = sd1.unet(shown["noisy_latents"], shown["timesteps"], hidden).sample
    assert torch.equal(denoiser_of(sd1)(**shown, input_ids=ids), expected)
    assert torch.equal(sd1.text_encoder(ids[:, 0])[0], hidden)
    assert torch.equal(denoiser_of(sd1)(**shown, hidden=hidden), expected)


@torch.no_grad()
def test_sdxl_reads_what_its_pipeline_encodes(sdxl: Any) -> None:
    embeds = embed(text_encoders(sdxl), tokenize(sdxl, CAPTIONS))
    hidden, pooled, *_ = xl_embeds(sdxl, CAPTIONS)
    assert torch.equal(embeds.hidden, hidden)
    assert torch.equal(embeds.pooled, pooled)


@torch.no_grad()
def test_sdxl_is_the_unet_under_the_pipelines_conditions(sdxl: Any, shown: dict) -> None:
    hidden, pooled, *_ = xl_embeds(sdxl, CAPTIONS)
    size = (8 * sdxl.vae_scale_factor, 16 * sdxl.vae_scale_factor)
    time_ids = sdxl._get_add_time_ids(
        size, (0, 0), size, torch.float32, text_encoder_projection_dim=pooled.shape[-1]
    ).repeat(4, 1)
    denoiser = denoiser_of(sdxl)
    assert torch.equal(denoiser.time_ids(shown["noisy_latents"]), time_ids)
    added = {"text_embeds": pooled, "time_ids": time_ids}
    expected = sdxl.unet(shown["noisy_latents"], shown["timesteps"], hidden, added_cond_kwargs=added).sample
    ids = tokenize(sdxl, CAPTIONS)
    assert torch.equal(denoiser(**shown, input_ids=ids), expected)
    assert torch.equal(denoiser(**shown, hidden=hidden, pooled=pooled), expected)


@pytest.mark.parametrize("zeros", [True, False])
@torch.no_grad()
def test_a_dropped_caption_is_the_pipelines_unconditional_branch(
    tiny: ModuleType, shown: dict, zeros: bool
) -> None:
    pipeline = StableDiffusionXLPipeline(**tiny.make_xl_components(), force_zeros_for_empty_prompt=zeros)
    hidden, pooled, negative, negative_pooled = xl_embeds(pipeline, CAPTIONS)
    assert bool(negative.abs().sum()) != zeros
    lost = shown["dropped"]
    expected_hidden = torch.where(lost[:, None, None], negative, hidden)
    expected_pooled = torch.where(lost[:, None], negative_pooled, pooled)
    denoiser = denoiser_of(pipeline, zero_dropped=zeros)
    added = {"text_embeds": expected_pooled, "time_ids": denoiser.time_ids(shown["noisy_latents"])}
    expected = pipeline.unet(
        shown["noisy_latents"], shown["timesteps"], expected_hidden, added_cond_kwargs=added
    ).sample
    ids = ids_of(pipeline, CAPTIONS, DROPPED)
    torch.testing.assert_close(denoiser(**shown, input_ids=ids), expected, rtol=1e-5, atol=1e-6)
    other = denoiser_of(pipeline, zero_dropped=not zeros)(**shown, input_ids=ids)
    changed = (other - expected).flatten(1).abs().amax(1) > 1e-5
    assert changed.tolist() == DROPPED


def test_text_must_come_somehow(sd1: Any, shown: dict) -> None:
    with pytest.raises(ValueError, match="text must be given as input_ids or as hidden, got neither"):
        denoiser_of(sd1)(**shown)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.no_grad()
def test_a_controlnets_residuals_change_the_prediction(
    request: pytest.FixtureRequest, tiny: ModuleType, shown: dict, family: str
) -> None:
    pipeline = request.getfixturevalue(family)
    ids = tokenize(pipeline, CAPTIONS)
    condition = torch.rand(4, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    plain = denoiser_of(pipeline)(**shown, input_ids=ids)
    new = denoiser_of(pipeline, tiny.make_controlnet(pipeline.unet))
    assert torch.equal(new(**shown, input_ids=ids, condition=condition), plain)
    trained = denoiser_of(pipeline, tiny.make_controlnet(pipeline.unet, effect=0.3))
    steered = trained(**shown, input_ids=ids, condition=condition)
    for other in (plain, trained(**shown, input_ids=ids, condition=1 - condition)):
        assert (steered - other).flatten(1).abs().amax(1).min() > 1e-4


@torch.no_grad()
def test_a_controlnet_is_run_as_its_pipeline_runs_it(sd1: Any, tiny: ModuleType, shown: dict) -> None:
    controlnet = tiny.make_controlnet(sd1.unet, effect=0.3)
    ids, condition = tokenize(sd1, CAPTIONS), torch.rand(4, 3, 32, 64)
    hidden = sd1.text_encoder(ids[:, 0])[0]
    latents, timesteps = shown["noisy_latents"], shown["timesteps"]
    out = controlnet(latents, timesteps, hidden, condition, conditioning_scale=1.0)
    expected = sd1.unet(
        latents,
        timesteps,
        hidden,
        down_block_additional_residuals=out.down_block_res_samples,
        mid_block_additional_residual=out.mid_block_res_sample,
    ).sample
    result = denoiser_of(sd1, controlnet)(**shown, input_ids=ids, condition=condition)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    "trained", [("unet",), ("controlnet",), ("unet", "text_encoder"), ("text_encoder_2",)]
)
def test_only_trained_networks_are_submodules(tiny: ModuleType, trained: tuple[str, ...]) -> None:
    pipeline = StableDiffusionXLPipeline(**tiny.make_xl_components())
    controlnet = tiny.make_controlnet(pipeline.unet)
    networks = {
        "unet": pipeline.unet,
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
        "controlnet": controlnet,
    }
    for name, network in networks.items():
        network.requires_grad_(name in trained)
    denoiser = denoiser_of(pipeline, controlnet)
    assert dict(denoiser.named_children()) == {name: networks[name] for name in trained}
    expected = {f"{name}.{key}" for name in trained for key in networks[name].state_dict()}
    assert set(denoiser.state_dict()) == expected
    assert [name for name, _ in denoiser.trained()] == [name for name, _ in denoiser.named_parameters()]
    assert set(map(id, denoiser.networks)) == set(map(id, networks.values()))
    assert all(getattr(denoiser, name) is network for name, network in networks.items())


def test_of_a_partly_trained_network_only_the_trained_weights_are_listed(tiny: ModuleType) -> None:
    pipeline = StableDiffusionPipeline(**tiny.make_components())
    pipeline.text_encoder.requires_grad_(False)
    pipeline.unet.requires_grad_(False).conv_out.requires_grad_(True)
    denoiser = denoiser_of(pipeline)
    assert [name for name, _ in denoiser.trained()] == ["unet.conv_out.weight", "unet.conv_out.bias"]
    assert denoiser.controlnet is None
    assert list(dict(denoiser.named_children())) == ["unet"]


def test_token_ids_are_the_tokenizers_own(sdxl: Any) -> None:
    texts = TokenIds(sdxl, ["a mug", "a very long caption of a mug that is cut"])
    for row, caption in ((0, "a mug"), (1, "a very long caption of a mug that is cut"), (None, "")):
        ids = texts[row]["input_ids"]
        assert ids.shape == (2, 16)
        for tokenizer, own in zip(tokenizers(sdxl), ids, strict=True):
            expected = tokenizer(caption, padding="max_length", max_length=16, truncation=True).input_ids
            assert own.tolist() == expected


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.no_grad()
def test_cached_embeddings_are_the_encoders_own(
    request: pytest.FixtureRequest, tmp_path: Path, family: str
) -> None:
    pipeline = request.getfixturevalue(family)
    cached = cache_text(pipeline, CAPTIONS, cache_dir=tmp_path)
    distinct = sorted({*CAPTIONS, ""})
    whole = embed(text_encoders(pipeline), tokenize(pipeline, distinct))  # one batch, as they were cached
    names = {"hidden", "pooled"} if family == "sdxl" else {"hidden"}
    for row, caption in [*enumerate(CAPTIONS), (None, "")]:
        item, place = cached[row], distinct.index(caption)
        assert set(item) == names
        for name in names:
            assert torch.equal(item[name], getattr(whole, name)[place]), (name, caption)
        alone = embed(text_encoders(pipeline), tokenize(pipeline, [caption]))
        torch.testing.assert_close(item["hidden"], alone.hidden[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(cached[0]["hidden"], cached[2]["hidden"])
    assert not torch.equal(cached[0]["hidden"], cached[1]["hidden"])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_cached_pooled_text_is_read_by_rows_and_slices(
    request: pytest.FixtureRequest, tmp_path: Path, family: str
) -> None:
    pipeline = request.getfixturevalue(family)
    cached = cache_pooled_text(pipeline, CAPTIONS, cache_dir=tmp_path)
    expected = pooled_text(pipeline, CAPTIONS)
    assert (len(cached), cached.shape) == (4, tuple(expected.shape))
    torch.testing.assert_close(cached[:4], expected)
    torch.testing.assert_close(cached[1], expected[1])
    torch.testing.assert_close(cached[[3, 0]], expected[[3, 0]])
    torch.testing.assert_close(cached.at([2, 3])[:2], expected[2:])
    assert torch.equal(cached[0], cached[2])


@torch.no_grad()
def test_a_step_sees_the_same_text_cached_or_not(sdxl: Any, shown: dict, tmp_path: Path) -> None:
    cached = texts_of(sdxl, CAPTIONS, cached=True, cache_dir=tmp_path)
    tokens = texts_of(sdxl, CAPTIONS, cached=False, cache_dir=tmp_path)
    assert isinstance(cached, CachedText)
    assert isinstance(tokens, TokenIds)
    predictions = []
    for texts in (cached, tokens):
        items = [texts[None if lost else row] for row, lost in enumerate(DROPPED)]
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        predictions.append(denoiser_of(sdxl, zero_dropped=True)(**shown, **batch))
    torch.testing.assert_close(*predictions, rtol=1e-5, atol=1e-6)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many captions each call of the encoders was given."""
    sizes: list[int] = []

    def counting(encoders: Any, input_ids: torch.Tensor) -> Any:
        sizes.append(len(input_ids))
        return embed(encoders, input_ids)

    monkeypatch.setattr(text_cache, "embed", counting)
    return sizes


def test_a_caption_is_encoded_once_and_found_again(sd1: Any, tmp_path: Path, encoded: list[int]) -> None:
    first = cache_text(sd1, CAPTIONS, cache_dir=tmp_path, batch_size=3)
    assert encoded == [3, 1]  # three captions and the empty one
    again = cache_text(sd1, CAPTIONS[::-1], cache_dir=tmp_path)
    assert encoded == [3, 1]
    assert torch.equal(first[1]["hidden"], again[2]["hidden"])
    assert torch.equal(first[None]["hidden"], again[None]["hidden"])
    more = cache_text(sd1, ["a bag", "a mug"], cache_dir=tmp_path)
    assert encoded == [3, 1, 1]
    assert torch.equal(more[1]["hidden"], first[0]["hidden"])


def test_processes_divide_the_captions_and_read_the_same(
    sdxl: Any, tmp_path: Path, encoded: list[int], together: Callable
) -> None:
    results = together(
        2, lambda processes: cache_text(sdxl, CAPTIONS, cache_dir=tmp_path, processes=processes)
    )
    assert sorted(encoded) == [2, 2]
    alone = cache_text(sdxl, CAPTIONS, cache_dir=tmp_path / "alone")
    for row in (0, 1, 2, 3, None):
        for name in ("hidden", "pooled"):
            own, other = (result[row][name] for result in results)
            assert torch.equal(own, other)
            torch.testing.assert_close(own, alone[row][name], rtol=1e-5, atol=1e-6)


def test_processes_agree_on_what_is_missing(
    sd1: Any, tmp_path: Path, together: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One looks before another run writes the empty caption, one after it."""
    here = local()
    cache_text(sd1, [], cache_dir=tmp_path)

    def look(folder: Path) -> dict:
        looked, here.looked = here.looked, True
        return read_entries(folder) if looked else {}

    monkeypatch.setattr(text_cache, "read_entries", look)

    def work(processes: Processes) -> CachedText:
        here.looked = not processes.is_main
        return cache_text(sd1, CAPTIONS, cache_dir=tmp_path, processes=processes)

    first, second = together(2, work)
    for row in (0, 1, 2, 3, None):
        assert torch.equal(first[row]["hidden"], second[row]["hidden"])


def test_embeddings_that_do_not_arrive_are_an_error(sd1: Any, tmp_path: Path, together: Callable) -> None:
    """As on two machines that do not share the folder."""
    folders = [tmp_path / name for name in "ab"]
    errors = together(
        2,
        lambda processes: cache_text(sd1, CAPTIONS, cache_dir=folders[processes.index], processes=processes),
    )
    for error, folder in zip(errors, folders, strict=True):
        assert f"must be in {folder}" in str(error)
        assert "once encoded, got none: all processes must see the same cache folder" in str(error)


def test_another_encoder_or_dtype_is_another_folder(tiny: ModuleType, tmp_path: Path) -> None:
    def fill(dtype: torch.dtype, seed: int = 0) -> int:
        """Folders after a caption is cached by an encoder whose weights bfloat16 holds exactly."""
        encoder = tiny.make_text_encoder(seed=seed).to(torch.bfloat16).to(dtype)
        pipeline = SimpleNamespace(**tiny.make_components() | {"text_encoder": encoder})
        cached = cache_text(pipeline, ["a mug"], cache_dir=tmp_path)
        assert cached[0]["hidden"].dtype == dtype
        return len(list(tmp_path.iterdir()))

    assert [fill(torch.float32), fill(torch.float32)] == [1, 1]
    assert fill(torch.float32, seed=1) == 2
    assert fill(torch.bfloat16) == 3


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_estimate_is_what_the_tensors_take(
    tiny: ModuleType, tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    make = {"sd1": tiny.make_components, "sdxl": tiny.make_xl_components}[family]
    pipeline = SimpleNamespace(**make())
    for encoder in text_encoders(pipeline):
        encoder.to(dtype)
    cached = cache_text(pipeline, CAPTIONS, cache_dir=tmp_path)
    taken = sum(tensor.nbytes for row in (0, 1, 3, None) for tensor in cached[row].values())
    assert embeddings_size(pipeline, CAPTIONS, dtype=dtype) == taken


def test_whether_text_is_cached(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    options = {"cache_dir": tmp_path / "not" / "there"}
    assert should_cache(None, frozen=True, size=1000, **options)
    assert not should_cache(None, frozen=True, size=free, **options)
    assert not should_cache(None, frozen=False, size=1000, **options)
    assert should_cache(True, frozen=True, size=2 * free, **options)
    assert not should_cache(False, frozen=True, size=1000, **options)
    assert not should_cache(False, frozen=False, size=1000, **options)
    message = "train.cache_text must be false while text encoders are trained, got true"
    with pytest.raises(ValueError, match=message):
        should_cache(True, frozen=False, size=1000, **options)

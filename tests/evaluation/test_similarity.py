import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from onbrand.evaluation import clip_score, load_clip, load_sscd, pick_score
from onbrand.evaluation.similarity import BATCH, CLIP_MEAN, CLIP_STD, centre_crop, normalise
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

PROMPTS = ["a red mug", "a blue lamp on white", "hat"]
SIDE = 32


def pictures(n: int = 3, *, size: tuple[int, int] = (70, 50), seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(values).resize(size, Image.Resampling.BICUBIC) for values in coarse]


@pytest.fixture(scope="module")
def clip_folder(tiny, tmp_path_factory) -> Path:
    """A random CLIP of 32 x 32 pixels, with a scale of 7 as if learnt; treat it as read-only."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": SIDE, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 12}
    config = CLIPConfig(
        text_config=tiny.make_clip_config().to_dict(),
        vision_config=CLIPVisionConfig(**vision, **layers).to_dict(),
        projection_dim=12,
        logit_scale_init_value=math.log(7),
        initializer_factor=5.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).eval().save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_clip(clip_folder)


@pytest.fixture(scope="module")
def logits(clip_folder, tiny) -> torch.Tensor:
    """Pictures times prompts, by transformers' own forward pass."""
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = tiny.make_tokenizer()(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    pixels = normalise([centre_crop(p, SIDE) for p in pictures()], mean=CLIP_MEAN, std=CLIP_STD)
    with torch.no_grad():
        return model(pixel_values=pixels, **tokens).logits_per_image


@pytest.mark.parametrize("size", [(70, 50), (50, 71), (33, 90), (20, 20), (32, 32), (224, 97)])
def test_pictures_are_prepared_as_by_transformers(size):
    processors = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = processors.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    [picture] = pictures(1, size=size)
    ours = normalise([centre_crop(picture, SIDE)], mean=CLIP_MEAN, std=CLIP_STD)
    torch.testing.assert_close(ours, processor(picture, return_tensors="pt").pixel_values)


def test_scores_are_those_of_transformers_forward_pass(clip, logits):
    assert clip.model.logit_scale.exp().item() == pytest.approx(7)
    assert logits.std() > 0.1
    torch.testing.assert_close(pick_score(pictures(), PROMPTS, clip), logits.diagonal())
    torch.testing.assert_close(clip_score(pictures(), PROMPTS, clip), logits.diagonal() / 7)
    torch.testing.assert_close(clip_score(pictures(), PROMPTS[1], clip), logits[:, 1] / 7)
    torch.testing.assert_close(clip_score(pictures()[:1], "hat", clip), logits[:1, 2] / 7)


def test_pixels_score_as_the_pictures_they_are(clip):
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures()]))
    pixels = pixels.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(clip(pixels), clip(pictures()), rtol=0, atol=0)


def test_a_descriptor_gives_unit_rows_in_the_pictures_order(clip):
    many = pictures(BATCH + 3)
    features = clip(many)
    assert features.shape == (BATCH + 3, 12)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(BATCH + 3))
    torch.testing.assert_close(clip(many[::-1]), features.flip(0))
    assert features.std(dim=0).min() > 1e-3
    torch.testing.assert_close(clip(many[BATCH:]), features[BATCH:])


def test_a_long_prompt_is_cut_and_padding_changes_nothing(clip, tiny):
    words = list("abcdefghijklmnopqrs")  # a token each, and two to begin and end with
    features = clip.of_text(["hat", " ".join(words)])
    torch.testing.assert_close(features[:1], clip.of_text(["hat"]))
    torch.testing.assert_close(features[1:], clip.of_text([" ".join(words[: tiny.TOKENS - 2])]))
    assert (features[1:] - clip.of_text([" ".join(words[: tiny.TOKENS - 3])])).abs().max() > 1e-3


def test_the_processor_may_come_from_elsewhere(clip_folder, clip, tiny, tmp_path):
    other, weights = tmp_path / "processor", tmp_path / "weights"
    tiny.make_tokenizer().save_pretrained(other)
    CLIPModel.from_pretrained(clip_folder).save_pretrained(weights)
    (other / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]})
    )
    found = load_clip(weights, processor=other)
    assert (found.mean, found.std, found.side) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), SIDE)
    assert (clip.mean, clip.std, clip.name) == (CLIP_MEAN, CLIP_STD, str(clip_folder))
    torch.testing.assert_close(found.of_text(PROMPTS), clip.of_text(PROMPTS))
    assert (found(pictures()) - clip(pictures())).abs().max() > 1e-3


def test_what_is_no_clip_is_refused(clip_folder, tiny_base, tmp_path):
    missing = tmp_path / "missing"
    for path in (missing, tmp_path):
        with pytest.raises(ValueError, match=rf"^CLIP model must be a folder or a hub id, got '{path}': "):
            load_clip(path)
    encoder = tiny_base / "text_encoder"
    with pytest.raises(
        ValueError, match=rf"^CLIP model must be of type clip, got 'clip_text_model' in '{encoder}'$"
    ):
        load_clip(encoder)
    with pytest.raises(ValueError, match=rf"^processor must be a folder or a hub id, got '{missing}': "):
        load_clip(clip_folder, processor=missing)
    found = rf"^processor must hold a CLIP tokenizer of \d+ tokens, got \d in '{tmp_path}'$"
    with pytest.raises(ValueError, match=found):
        load_clip(clip_folder, processor=tmp_path)


def test_prompts_must_fit_the_pictures(clip):
    with pytest.raises(ValueError, match=r"^prompts must be one, or one a picture, got 2 for 3 pictures$"):
        clip_score(pictures(), PROMPTS[:2], clip)
    with pytest.raises(ValueError, match=r"^prompts must be one, or one a picture, got 0 for 3 pictures$"):
        pick_score(pictures(), [], clip)


class Corners(torch.nn.Module):
    """Sees the mean of the four quarters of 320 x 320 pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] == 320 and x.shape[3] == 320  # noqa: PT018
        return x.reshape(x.shape[0], 3, 2, 160, 2, 160).mean(dim=5).mean(dim=3).flatten(1)


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten()


def scripted(model: torch.nn.Module, path: Path) -> Path:
    torch.jit.script(model).save(str(path))
    return path


def test_sscd_sees_stretched_normalised_pictures(tmp_path):
    sscd = load_sscd(scripted(Corners(), tmp_path / "sscd.pt"))
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    blocks = Image.fromarray(colours).resize((60, 40), Image.Resampling.NEAREST)
    features = sscd([blocks, Image.new("RGB", (9, 5), "white")])
    assert (sscd.name, features.shape, features.dtype) == ("sscd.pt", (2, 12), torch.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((colours / 255 - mean) / std).transpose(2, 0, 1).ravel()
    cosine = features[0].numpy() @ expected / np.linalg.norm(expected)
    assert cosine == pytest.approx(1, abs=1e-3)
    white = np.repeat((1 - mean) / std, 4)
    np.testing.assert_allclose(features[1], white / np.linalg.norm(white), rtol=1e-5)


def test_sscd_works_in_batches_in_order(tmp_path):
    sscd = load_sscd(scripted(Corners(), tmp_path / "sscd.pt"))
    many = pictures(BATCH + 1, size=(8, 8))
    features = sscd(many)
    torch.testing.assert_close(sscd(many[BATCH:]), features[BATCH:])
    assert features.shape == (BATCH + 1, 12)


def test_what_is_no_torchscript_is_refused(tmp_path):
    missing, words, weights = tmp_path / "none.pt", tmp_path / "words.pt", tmp_path / "weights.pt"
    with pytest.raises(
        ValueError, match=rf"^SSCD model must be an existing torchscript file, got '{missing}'$"
    ):
        load_sscd(missing)
    words.write_text("no model")
    torch.save({"weight": torch.ones(2)}, weights)
    for path in (words, weights):
        with pytest.raises(ValueError, match=rf"^SSCD model must be a torchscript file, got '{path}'$"):
            load_sscd(path)


def test_a_model_of_another_output_is_refused(tmp_path):
    sscd = load_sscd(scripted(Flat(), tmp_path / "flat.pt"))
    with pytest.raises(
        ValueError, match=r"^SSCD model must return features of shape \(N, D\), got torch\.Size\("
    ):
        sscd(pictures(2))

"""New backgrounds: what stays as it was drawn, what moves, masks, and what is refused."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, UNet2DModel
from onbrand.data.studio import Shot
from onbrand.evaluation import rmse_foreground
from onbrand.inference import OffsetStableDiffusionPipeline, OffsetStableDiffusionXLPipeline, load_pipeline
from onbrand.inference.backgrounds import scenes
from onbrand.inference.contrastive import ContrastiveNoise
from onbrand.inference.couplings import Independent, Repulsive
from onbrand.inference.mask import latent_mask, object_mask
from onbrand.pca import Sampler, StartDistribution
from onbrand.train.models import TINY_BASE
from PIL import Image, ImageOps

FEW = {"sampler": Sampler("DDIMScheduler", 3), "optimisation_steps": 4, "images": 3}


def picture(size=32):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def box_mask(size=32, box=(8, 8, 24, 20)):
    mask = Image.new("L", (size, size))
    mask.paste(255, box)
    return mask


def pixel_pipeline():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        ).eval()
    pipeline = DDPMPipeline(unet, DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(tiny):
    pipeline = OffsetStableDiffusionPipeline(**tiny.make_components())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def distribution(tiny, pipeline, generator):
    latents = 1 + torch.randn(8, *tiny.LATENT_SHAPE, generator=generator)
    ids = torch.arange(8) % 2
    distribution = StartDistribution.fit(
        latents, ids, class_names=["mug", "hat"], components=1, offset_from=901
    )
    pipeline.register_modules(start_distribution=distribution)
    return distribution


def drawn(coupling, images, shape, seed=0):
    return coupling.draw(images, shape, torch.Generator().manual_seed(seed))


def test_the_background_stays_as_drawn_for_a_hundred_steps(tiny, pipeline):
    call = FEW | {"optimisation_steps": 100, "sampler": Sampler("DDIMScheduler", 1), "gradient": "skip"}
    made = scenes(pipeline, picture(), box_mask(), prompt="a mug", seed=5, learning_rate=0.1, **call)
    expected = drawn(Repulsive(), 3, tiny.LATENT_SHAPE, seed=5)
    assert torch.equal(made.eps[:, :, ~made.inside], expected[:, :, ~made.inside])
    start = made.inversion.eps.expand_as(made.eps)
    assert ((made.eps - start)[:, :, made.inside].abs() > 0.01).float().mean() > 0.9
    assert made.losses.shape == (101, 3)


@pytest.mark.parametrize("gradient", ["full", "skip"])
def test_without_steps_the_object_has_its_own_noise(tiny, pipeline, gradient):
    call = FEW | {"optimisation_steps": 0}
    made = scenes(pipeline, picture(), box_mask(), prompt="a mug", gradient=gradient, **call)
    expected = drawn(Repulsive(), 3, tiny.LATENT_SHAPE)
    expected[:, :, made.inside] = made.inversion.x_T[:, :, made.inside]
    assert torch.equal(made.eps, expected)
    shown = pipeline(
        ["a mug"] * 3, latents=expected, num_inference_steps=3, guidance_scale=1.0, output_type="pil"
    ).images
    for ours, theirs in zip(made.pictures, shown, strict=True):
        gap = np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)
        assert np.abs(gap).max() <= 1


def test_a_trained_model_keeps_the_object_better():
    """The loss falls with the steps, and is what the pictures show."""
    pipeline = load_pipeline(TINY_BASE, plain=True)
    pipeline.set_progress_bar_config(disable=True)
    shot = Shot("wild", 64, 3, 0)
    call = {"images": 2, "optimisation_steps": 8, "sampler": Sampler("DDIMScheduler", 5)}
    mask = box_mask(64, (16, 16, 48, 48))
    for gradient in ("full", "skip"):
        made = scenes(
            pipeline, shot.draw(), mask, prompt=shot.caption(), gradient=gradient, learning_rate=0.1, **call
        )
        assert (made.losses[-1] < 0.5 * made.losses[0]).all()
        clear = np.asarray(made.mask)
        rmse = rmse_foreground(made.pictures, made.original, clear)
        assert rmse == pytest.approx(float(made.losses[-1].sqrt().mean()), abs=0.01)


def test_each_picture_is_refined_as_if_alone(pipeline):
    alone = scenes(pipeline, picture(), box_mask(), batch_size=1, **FEW)
    together = scenes(pipeline, picture(), box_mask(), batch_size=3, **FEW)
    torch.testing.assert_close(alone.eps, together.eps, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(alone.losses, together.losses, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(alone.eps[0], alone.eps[1], atol=0.01)


def test_the_coupling_and_the_seed_are_heard(tiny, pipeline):
    call = FEW | {"optimisation_steps": 1}
    made = scenes(pipeline, picture(), box_mask(), coupling=Independent(), seed=3, **call)
    expected = drawn(Independent(), 3, tiny.LATENT_SHAPE, seed=3)
    assert torch.equal(made.eps[:, :, ~made.inside], expected[:, :, ~made.inside])


@pytest.mark.parametrize("start", ["mean", "draw", "none"])
def test_the_object_begins_at_the_same_latents_whatever_the_start(tiny, pipeline, distribution, start):
    call = FEW | {"optimisation_steps": 0}
    made = scenes(pipeline, picture(), box_mask(), class_name="hat", start=start, **call)
    generator = torch.Generator().manual_seed(0)
    background = Repulsive().draw(3, tiny.LATENT_SHAPE, generator)
    assert torch.equal(made.eps[:, :, ~made.inside], background[:, :, ~made.inside])
    ids = torch.ones(3, dtype=torch.long)
    x_start = {
        "mean": lambda: distribution.expected(ids),
        "draw": lambda: distribution.sample(ids, generator),
        "none": lambda: torch.zeros(3, *tiny.LATENT_SHAPE),
    }[start]()
    a = float(pipeline.scheduler.alphas_cumprod[667]) if start != "none" else 0.0
    x_T = a**0.5 * x_start + (1 - a) ** 0.5 * made.eps
    object_at = made.inversion.x_T.expand_as(x_T)[:, :, made.inside]
    torch.testing.assert_close(x_T[:, :, made.inside], object_at, atol=1e-5, rtol=1e-5)


def test_a_prompt_for_each_background(tiny, pipeline):
    call = FEW | {"source_prompt": "a mug"}
    prompts = ["a mug", "a hat", "a mug in b"]
    made = scenes(pipeline, picture(), box_mask(), prompt=prompts, batch_size=2, **call)
    alike = scenes(pipeline, picture(), box_mask(), prompt="a mug", batch_size=2, **call)
    assert torch.equal(made.inversion.x_T, alike.inversion.x_T)
    assert torch.equal(made.losses[0, 0], alike.losses[0, 0])
    assert not torch.equal(made.losses[0, 1:], alike.losses[0, 1:])


def test_xl(tiny):
    pipeline = OffsetStableDiffusionXLPipeline(**tiny.make_xl_components())
    pipeline.set_progress_bar_config(disable=True)
    made = scenes(pipeline, picture(), box_mask(), prompt="a mug", **FEW)
    assert (made.losses[-1] < made.losses[0]).all()


def test_a_model_in_pixels():
    pipeline = pixel_pipeline()
    mask = box_mask(16, (4, 4, 12, 10))
    made = scenes(pipeline, picture(16), mask, learning_rate=0.1, **FEW)
    assert torch.equal(made.inside, made.mask)
    assert int(made.mask.sum()) == 48
    expected = drawn(Repulsive(), 3, (3, 16, 16))
    assert torch.equal(made.eps[:, :, ~made.mask], expected[:, :, ~made.mask])
    assert (made.losses[-1] < made.losses[0]).all()
    assert made.pictures[0].size == (16, 16)


def test_progress_counts_every_pass(pipeline):
    counts = []
    scenes(pipeline, picture(), box_mask(), batch_size=2, advance=counts.append, **FEW)
    assert counts == [2] * 5 + [1] * 5


def test_a_pipeline_of_diffusers_own(tiny):
    plain = StableDiffusionPipeline(**tiny.make_components())
    ours = OffsetStableDiffusionPipeline(**tiny.make_components())
    call = FEW | {"image": picture(), "mask": box_mask(), "prompt": "a mug"}
    assert torch.equal(scenes(plain, **call).eps, scenes(ours, **call).eps)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "I;16"])
def test_masks_of_any_mode(mode):
    mask = box_mask()
    if mode == "I;16":
        given = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        given = Image.new(mode, mask.size, (255,) * len(mode))
        given.putalpha(mask)
    else:
        given = mask.convert(mode)
    assert given.mode == mode
    found = object_mask(picture(), given, height=32, width=32)
    assert torch.equal(found, torch.from_numpy(np.asarray(mask) == 255))


def test_the_mask_is_cut_at_half_and_fitted_as_the_picture(tmp_path):
    wide = Image.new("L", (64, 32), 127)
    wide.paste(128, (20, 8, 44, 24))
    wide.save(tmp_path / "mask.png")
    image = Image.new("RGB", (64, 32))
    cropped = object_mask(image, tmp_path / "mask.png", height=32, width=32)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[8:24, 4:28] = True
    assert torch.equal(cropped, expected)
    wide = Image.new("L", (64, 32), 255)
    padded = object_mask(image, wide, height=64, width=64, fit="pad")
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[16:48] = True
    assert torch.equal(padded, expected)


def test_a_turned_photo_and_its_upright_mask():
    image = Image.new("RGB", (32, 24))
    image.getexif()[0x0112] = 6
    mask = box_mask(32, (8, 8, 16, 16)).crop((0, 0, 24, 32))
    assert ImageOps.exif_transpose(image).size == mask.size
    upright = object_mask(image, mask, height=32, width=24)
    assert int(upright.sum()) == 64
    lying = mask.rotate(90, expand=True)
    lying.getexif()[0x0112] = 6
    assert torch.equal(object_mask(image, lying, height=32, width=24), upright)


def test_without_a_mask_the_backdrop_tells():
    image = Image.new("RGB", (64, 64), "white")
    image.paste((200, 30, 30), (16, 24, 40, 56))
    found = object_mask(image, height=64, width=64)
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[24:56, 16:40] = True
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="only background where it was found by the backdrop: give a mask"):
        object_mask(Image.new("RGB", (64, 64), "white"), height=64, width=64)


def test_a_latent_with_any_object_in_it_is_object():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[3, 4] = mask[15, 16] = True
    inside = latent_mask(mask, (8, 8))
    assert inside.nonzero().tolist() == [[0, 1], [3, 4]]
    mask[::4, ::4] = True
    with pytest.raises(ValueError, match="mask must leave background in the latents, got an object that"):
        latent_mask(mask, (8, 8))


@pytest.mark.parametrize(("value", "only"), [(0, "background"), (255, "object")])
def test_masks_of_nothing_or_everything(value, only):
    with pytest.raises(ValueError, match=f"mask must hold object and background, got only {only}$"):
        object_mask(picture(), Image.new("L", (32, 32), value), height=32, width=32)


def test_what_it_refuses(pipeline):
    def refused(**changes):
        return scenes(**{"pipeline": pipeline, "image": picture(), "mask": box_mask()} | FEW | changes)

    with pytest.raises(ValueError, match="mask must be of the picture's size 32 x 32, got 16 x 16"):
        refused(mask=box_mask(16))
    with pytest.raises(ValueError, match=r"guidance_scale must be 1 where DDIM is inverted, got 3\.0"):
        refused(guidance_scale=3.0)
    with pytest.raises(ValueError, match="sampler must be DDIMScheduler"):
        refused(sampler=Sampler("DDPMScheduler", 20))
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        refused(images=0)
    with pytest.raises(ValueError, match="prompt must be one, or one for each of 3 images, got 2"):
        refused(prompt=["a", "b"])
    with pytest.raises(ValueError, match="optimisation_steps must be at least 0, got -1"):
        refused(optimisation_steps=-1)
    with pytest.raises(ValueError, match="learning_rate must be positive, got 0"):
        refused(learning_rate=0)
    with pytest.raises(ValueError, match="gradient must be one of full, skip, got 'none'"):
        refused(gradient="none")
    with pytest.raises(ValueError, match="coupling must draw noise without seeing the network, got Contrast"):
        refused(coupling=ContrastiveNoise(Repulsive()))
    with pytest.raises(ValueError, match="start='draw' must come with a start distribution"):
        refused(start="draw")

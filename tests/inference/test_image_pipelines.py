"""Image-to-image and inpainting: what reaches the UNet, the known pixels, diffusers' own pictures, sizes."""

import diffusers
import numpy as np
import pytest
import torch
from onbrand import inference
from onbrand.pca import StartDistribution, vae_fingerprint
from PIL import ExifTags, Image, ImageOps

STEPS, OFFSET_FROM = 20, 941
NAMES = {"sd": "StableDiffusion", "xl": "StableDiffusionXL"}
SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "Euler": "EulerDiscreteScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
    "Heun": "HeunDiscreteScheduler",
    "PNDM": "PNDMScheduler",
}
PROMPTS = ["a shoe", "a mug, red"]
PICTURES = [Image.linear_gradient("L").convert("RGB").resize((32, 32)), Image.new("RGB", (32, 32), "red")]
HOLE = Image.new("L", (32, 32))
HOLE.paste(255, (16, 0, 32, 32))  # the right half is painted
IN_HOLE = (torch.arange(8) >= 4).expand(1, 1, 8, 8)

pytestmark = pytest.mark.filterwarnings("ignore:the sampler's first timestep")


@pytest.fixture(scope="module", params=NAMES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def all_parts(tiny):
    """The VAE's posterior has next to no spread: what diffusers samples of it is its mean."""
    made = {"sd": tiny.make_components(), "xl": tiny.make_xl_components()}
    for parts in made.values():
        with torch.no_grad():
            parts["vae"].quant_conv.weight[4:] = 0
            parts["vae"].quant_conv.bias[4:] = -100
    return made


@pytest.fixture
def parts(all_parts, kind):
    return all_parts[kind]


def statistics(vae, size, **options):
    x = torch.randn(20, 4, *size, generator=seeded()) + 1
    return StartDistribution.fit(
        x,
        options.pop("ids", torch.arange(20) % 2),
        class_names=["mug", "shoe"],
        components=2,
        caption_prefixes={"mug": "a mug", "shoe": "a shoe"},
        vae_fingerprint=vae_fingerprint(vae),
        offset_from=OFFSET_FROM,
        **options,
    )


@pytest.fixture(scope="module")
def distribution(all_parts):
    """8x8, with a bucket 8x12 of mugs alone."""
    vae = all_parts["sd"]["vae"]
    distribution = statistics(vae, (8, 8))
    distribution.add_bucket(statistics(vae, (8, 12), ids=torch.zeros(20).long(), allow_empty=True))
    return distribution


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def make(parts, kind, distribution):
    """A pipeline by task ("Img2Img", "Inpaint", ""): ours, or diffusers' own."""

    def make(task, scheduler="DDIM", *, start_distribution=distribution, unet=None, theirs=False):
        base = diffusers if theirs else inference
        name = f"{'' if theirs else 'Offset'}{NAMES[kind]}{task}Pipeline"
        changed = {
            "scheduler": getattr(diffusers, SCHEDULERS[scheduler]).from_config(parts["scheduler"].config)
        }
        changed |= {} if unet is None else {"unet": unet}
        if task and kind == "xl":
            changed["requires_aesthetics_score"] = False
        changed |= {} if theirs else {"start_distribution": start_distribution}
        return quiet(getattr(base, name)(**parts | changed))

    return make


class Reached(Exception):
    """Carries what the UNet is first given out of the pipeline."""


@pytest.fixture
def reached(monkeypatch):
    """Runs a call up to the UNet: the latents it was shown and the timestep it was told."""

    def forward(sample, timestep, *args, **kwargs):
        raise Reached(sample, timestep)

    def run(pipe, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(pipe.unet, "forward", forward)
            with pytest.raises(Reached) as caught:
                pipe(*args, **{"num_inference_steps": STEPS, "guidance_scale": 1.0, **kwargs})
        return caught.value.args

    return run


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def encoded(vae, *pictures):
    """Scaled latents of pictures of the right size."""
    pixels = torch.stack([torch.tensor(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in pictures])
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor


def noise_of(prompts=1, images=1, size=(8, 8), seed=0):
    g = seeded(seed)
    return torch.cat([torch.randn(images, 4, *size, generator=g) for _ in range(prompts)])


def closed_form(parts, x_start, eps, timestep):
    a = parts["scheduler"].alphas_cumprod[int(timestep)]
    return a.sqrt() * x_start + (1 - a).sqrt() * eps


def final(pipe, *args, **call):
    defaults = {"num_inference_steps": 4, "guidance_scale": 2.0, "generator": seeded(), "output_type": "np"}
    return np.asarray(pipe(*args, **defaults | call).images)


class Constant:
    """An initializer whose noise is known."""

    eps = noise_of(seed=7)

    def draw(self, num_images, shape, generator):
        return self.eps.expand(num_images, *shape).clone()


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("steps", [4, 20, 33])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_sampling_begins_at_the_level_that_strength_says(
    make, reached, parts, distribution, task, name, steps, strength
):
    call = {"image": PICTURES[0], "strength": strength, "num_inference_steps": steps}
    x_start, chosen = encoded(parts["vae"], PICTURES[0]), {}
    if task == "Inpaint":
        x_start = distribution.mean[:1]
        call, chosen = call | {"mask_image": HOLE}, {"x_start": x_start}
    ours, timestep = reached(make(task, name), "a mug", **call, **chosen, generator=seeded())
    _, told = reached(make(task, name, theirs=True), "a mug", **call)
    assert timestep == told
    torch.testing.assert_close(ours, closed_form(parts, x_start, noise_of(), told), rtol=1e-4, atol=1e-4)


def test_strength_counts_the_steps_of_a_custom_schedule(make, reached, parts):
    call = {"timesteps": [999, 700, 400, 100, 50], "strength": 0.6}
    ours, told = reached(make("Img2Img", "Euler"), "a mug", PICTURES[0], **call, generator=seeded())
    assert told == 400
    expected = closed_form(parts, encoded(parts["vae"], PICTURES[0]), noise_of(), told)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("projected", [False, True])
def test_at_strength_1_image_to_image_is_text_to_image_from_the_picture(make, name, projected):
    call = {"project_start": projected, "output_type": "latent"}
    here = final(make("Img2Img", name), "a mug", PICTURES[0], strength=1.0, **call)
    there = final(make("", name), "a mug", start_image=PICTURES[0], **call)
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("strength", [None, 0.6, 1.0])
@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_without_a_start_it_is_diffusers_own_call(make, task, strength):
    call = {"image": PICTURES[0]} | (
        {} if task == "Img2Img" else {"mask_image": HOLE, "height": 32, "width": 32}
    )
    call |= {} if strength is None else {"strength": strength}
    here = final(make(task, start_distribution=None), "a mug", **call)
    np.testing.assert_array_equal(here, final(make(task, theirs=True), "a mug", **call))


def test_strength_is_diffusers_default(make, reached):
    _, told = reached(make("Img2Img", theirs=True), "a mug", image=PICTURES[0])
    assert reached(make("Img2Img"), "a mug", PICTURES[0])[1] == told
    assert reached(make("Inpaint"), "a mug", PICTURES[0], HOLE)[1] == 951  # 1: the first of 20


def test_each_picture_is_projected_on_its_prompts_class(make, reached, parts, distribution):
    call = {"project_start": True, "num_images_per_prompt": 2, "strength": 0.5, "generator": seeded()}
    ours, t = reached(make("Img2Img"), PROMPTS, PICTURES, **call)
    x = encoded(parts["vae"], *PICTURES).repeat_interleave(2, dim=0)
    shown = distribution.project(x, torch.tensor([1, 1, 0, 0]))
    torch.testing.assert_close(ours, closed_form(parts, shown, noise_of(2, 2), t))
    named, _ = reached(make("Img2Img"), PROMPTS, PICTURES, **call | {"generator": seeded()}, class_name="mug")
    shown = distribution.project(x, torch.zeros(4).long())
    torch.testing.assert_close(named, closed_form(parts, shown, noise_of(2, 2), t))


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_one_generator_a_picture(make, reached, parts, distribution, task):
    generators = [seeded(i) for i in range(4)]
    call = {"num_images_per_prompt": 2, "strength": 1.0, "generator": generators}
    masks = {} if task == "Img2Img" else {"mask_image": [HOLE, HOLE]}
    ours, t = reached(make(task), PROMPTS, PICTURES, **call, **masks)
    eps = torch.cat([noise_of(seed=i) for i in range(4)])
    x = encoded(parts["vae"], *PICTURES).repeat_interleave(2, dim=0)
    x = x if task == "Img2Img" else distribution.mean[[1, 1, 0, 0]]
    torch.testing.assert_close(ours, closed_form(parts, x, eps, t))


def test_noise_alone_needs_no_start_distribution(make, reached, parts):
    pipe = make("Img2Img", start_distribution=None)
    ours, t = reached(pipe, "a mug", PICTURES[0], strength=0.5, noise=Constant())
    expected = closed_form(parts, encoded(parts["vae"], PICTURES[0]), Constant.eps, t)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("strength", [1.0, 0.98, 0.96, 0.94, 0.5])
def test_the_hole_starts_at_the_class_mean_in_the_offset_range_alone(
    make, reached, parts, distribution, strength
):
    call = {"image": PICTURES[0], "mask_image": HOLE, "strength": strength, "num_inference_steps": 50}
    ours, t = reached(make("Inpaint"), "a mug", **call, generator=seeded())
    if t >= OFFSET_FROM:
        torch.testing.assert_close(ours, closed_form(parts, distribution.mean[:1], noise_of(), t))
    else:
        plain, size = make("Inpaint", theirs=True), {"height": 32, "width": 32}
        assert torch.equal(ours, reached(plain, "a mug", **call, **size, generator=seeded())[0])
    assert (t >= OFFSET_FROM) == (strength > 0.95)


@pytest.mark.parametrize("chosen", ["start_image", "x_start", "projected"])
def test_what_is_chosen_starts_the_hole_at_any_strength(make, reached, parts, distribution, chosen):
    x = encoded(parts["vae"], PICTURES[1])
    call = {"x_start": x} if chosen == "x_start" else {"start_image": PICTURES[1]}
    if chosen == "projected":
        call["project_start"], x = True, distribution.project(x, torch.zeros(1).long())
    call |= {"strength": 0.5, "generator": seeded()}
    ours, t = reached(make("Inpaint"), "a mug", PICTURES[0], HOLE, **call)
    torch.testing.assert_close(ours, closed_form(parts, x, noise_of(), t))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_the_known_pixels_carry_the_noise_and_not_the_start(make, parts, distribution, name, strength):
    seen = []

    def keep(pipe, i, t, tensors):
        seen.append(tensors["latents"])
        return {}

    pipe = make("Inpaint", name)
    call = {"strength": strength, "x_start": 3 * distribution.mean[:1], "callback_on_step_end": keep}
    pipe("a mug", PICTURES[0], HOLE, num_inference_steps=10, generator=seeded(), **call)
    x, known = encoded(parts["vae"], PICTURES[0]), ~IN_HOLE.expand(1, 4, 8, 8)
    sigmas = getattr(pipe.scheduler, "sigmas", None)
    timesteps = pipe.scheduler.timesteps[-len(seen) :]
    for i, t in enumerate(timesteps[1:]):
        latents = seen[i]
        if name in ("Euler", "Heun"):  # theirs are x + sigma * eps
            latents = latents / (1 + sigmas[i - len(seen)] ** 2).sqrt()
        expected = closed_form(parts, x, noise_of(), t)
        torch.testing.assert_close(latents[known], expected[known], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen[-1][known], x[known], rtol=1e-3, atol=1e-3)


def test_noise_alone_begins_at_the_picture_as_diffusers_encodes_it(make, reached, parts, distribution):
    tall = Image.linear_gradient("L").convert("RGB").resize((32, 64))
    stretched = encoded(parts["vae"], tall.resize((32, 32), Image.Resampling.LANCZOS))
    for start_distribution in (None, distribution):
        pipe = make("Inpaint", start_distribution=start_distribution)
        ours, t = reached(
            pipe, "of no class", tall, HOLE, strength=0.5, noise=Constant(), height=32, width=32
        )
        torch.testing.assert_close(ours, closed_form(parts, stretched, Constant.eps, t))
    pipe = make("Inpaint", start_distribution=None)
    ours, t = reached(pipe, "a mug", tall, HOLE, noise=Constant())
    torch.testing.assert_close(ours, Constant.eps)  # DDIM's own start at strength 1


def test_a_start_of_none_is_the_noise_of_text_to_image(make, reached):
    call = {"start": "none", "generator": seeded()}
    ours, _ = reached(make("Inpaint"), "a mug", PICTURES[0], HOLE, **call)
    torch.testing.assert_close(ours, noise_of())
    cropped, _ = reached(make("Inpaint"), "a mug", PICTURES[0], HOLE, **call, padding_mask_crop=2)
    assert cropped.shape == ours.shape


@pytest.mark.parametrize("strength", [1.0, 0.96, 0.5])
def test_a_unet_made_for_inpainting(make, parts, reached, distribution, strength):
    unet = type(parts["unet"]).from_config(parts["unet"].config, in_channels=9).eval()
    pipe = make("Inpaint", unet=unet)
    call = {"strength": strength, "num_inference_steps": 50, "noise": Constant()}
    ours, t = reached(pipe, "a mug", PICTURES[0], HOLE, **call)
    x = encoded(parts["vae"], PICTURES[0]) if strength == 0.5 else distribution.mean[:1]
    assert ours.shape == (1, 9, 8, 8)
    torch.testing.assert_close(ours[:, :4], closed_form(parts, x, Constant.eps, t))
    assert torch.equal(ours[:, 4:5] == 1, IN_HOLE)
    assert np.isfinite(final(pipe, "a mug", PICTURES[0], HOLE, strength=strength)).all()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_each_prompts_picture_and_mask_stay_with_its_pictures(make, parts, strength):
    other = HOLE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    call = {"num_images_per_prompt": 2, "output_type": "latent", "strength": strength}
    painted = final(make("Inpaint"), PROMPTS, PICTURES, [HOLE, other], **call)
    x = encoded(parts["vae"], *PICTURES).repeat_interleave(2, dim=0)
    left, right = torch.tensor(painted[:2, ..., :4]), torch.tensor(painted[2:, ..., 4:])
    torch.testing.assert_close(left, x[:2, ..., :4], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(right, x[2:, ..., 4:], rtol=1e-3, atol=1e-3)
    assert not np.allclose(painted[0], painted[1], atol=0.1)


def test_a_photo_that_lies_on_its_side_is_turned(make):
    lying = Image.linear_gradient("L").convert("RGB").resize((48, 32))
    lying.getexif()[ExifTags.Base.Orientation] = 6
    upright = ImageOps.exif_transpose(lying)
    turned = [final(make("Inpaint"), "a mug, red", image, HOLE) for image in (lying, upright)]
    np.testing.assert_array_equal(*turned)


@pytest.mark.parametrize(
    ("kind", "task", "given"),
    [
        ("sd", "Inpaint", {"latents": noise_of()}),
        ("xl", "Inpaint", {"latents": noise_of()}),
        ("xl", "Img2Img", {"latents": noise_of()}),
        ("xl", "Inpaint", {"denoising_start": 0.6}),
        ("xl", "Img2Img", {"denoising_start": 0.6}),
    ],
)
def test_latents_and_a_noisy_image_are_diffusers_own(make, kind, task, given):
    masks = {} if task == "Img2Img" else {"mask_image": HOLE, "height": 32, "width": 32}
    call = {"image": PICTURES[0], "strength": 1.0, **masks, **given}
    here, there = (final(make(task, theirs=theirs), "a mug", **call) for theirs in (False, True))
    np.testing.assert_array_equal(here, there)
    name = next(iter(given))
    with pytest.raises(ValueError, match=f"{name} must be the only start, got noise beside it"):
        make(task)("a mug", **call, noise=Constant())


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_the_size_is_the_start_distributions_nearest_to_the_pictures_shape(make, reached, task):
    masks = {} if task == "Img2Img" else {"mask_image": HOLE}
    turned = Image.new("RGB", (40, 70))
    turned.getexif()[0x0112] = 6  # shown as 70 x 40
    cases = {(8, 12): [Image.new("RGB", (70, 40)), turned], (8, 8): [PICTURES[0], Image.new("RGB", (40, 70))]}
    for size, pictures in cases.items():
        for picture in pictures:
            assert reached(make(task), "a mug", picture, strength=1.0, **masks)[0].shape[2:] == size
    larger = {"height": 32, "width": 48}
    assert reached(make(task), "a mug", PICTURES[0], strength=1.0, **masks, **larger)[0].shape[2:] == (8, 12)


def test_latents_have_their_own_size(make, reached, parts):
    x = noise_of(size=(8, 12), seed=3)
    ours, t = reached(make("Img2Img"), "a mug", x[0], strength=0.5, generator=seeded())
    torch.testing.assert_close(ours, closed_form(parts, x, noise_of(size=(8, 12)), t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_half_precision_sees_the_same_start_rounded(make, parts, reached, task, dtype):
    masks = {} if task == "Img2Img" else {"mask_image": HOLE}
    call = {"x_start": noise_of(seed=3)} if masks else {"image": noise_of(seed=3)}
    call = {"image": PICTURES[0]} | call | masks | {"strength": 0.5}
    full, _ = reached(make(task), "a mug", **call, generator=seeded())
    unet = type(parts["unet"]).from_config(parts["unet"].config).to(dtype)
    half, _ = reached(make(task, unet=unet), "a mug", **call, generator=seeded())
    assert torch.equal(half, full.to(dtype))


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_a_call_leaves_nothing_behind(make, reached, parts, distribution, task):
    masks = {} if task == "Img2Img" else {"mask_image": HOLE}
    first = {"image": PICTURES[0], "strength": 1.0, **masks}
    pipe = make(task, "Euler")
    before = final(pipe, "a mug", **first)
    assert not np.array_equal(
        before, final(pipe, "a shoe", **first | {"image": PICTURES[1]}, class_name="mug")
    )
    reached(pipe, "a shoe", **first)  # fails while its first latents are ready
    np.testing.assert_array_equal(final(pipe, "a mug", **first), before)
    reached(pipe, "a shoe", **first)
    pipe.set_start_distribution(None)
    sides = {"height": 32, "width": 32} if masks else {}
    np.testing.assert_array_equal(
        final(pipe, "a mug", **first, **sides),
        final(make(task, "Euler", theirs=True), "a mug", **first, **sides),
    )


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_from_a_text_to_image_pipeline_with_its_start_distribution(make, kind, reached, distribution, task):
    ours = getattr(inference, f"Offset{NAMES[kind]}{task}Pipeline")
    pipe = quiet(ours.from_pipe(make("", "Euler")))
    assert pipe.start_distribution is distribution
    masks = {} if task == "Img2Img" else {"mask_image": HOLE}
    call = {"image": PICTURES[0], "strength": 1.0, **masks}
    there, _ = reached(make(task, "Euler"), "a mug", **call, generator=seeded())
    assert torch.equal(reached(pipe, "a mug", **call, generator=seeded())[0], there)


@pytest.mark.filterwarnings("error")
def test_a_sampler_that_begins_below_the_offset_range_warns_at_the_callers_line(make, reached):
    call = {"num_inference_steps": 5, "strength": 1.0}
    masks = {"Img2Img": {}, "Inpaint": {"mask_image": HOLE}}
    for task, mask in masks.items():
        with pytest.warns(UserWarning, match="first timestep 801 lies below 941") as caught:
            reached(make(task), "a mug", PICTURES[0], **mask, **call)
        assert caught[0].filename == __file__
        reached(make(task), "a mug", PICTURES[0], **mask, **call | {"strength": 0.8})  # without a warning


WRONG = {
    "Img2Img": [
        ({"strength": 1.5}, r"strength must be in \[0, 1\], got 1.5"),
        ({"strength": -0.1}, r"strength must be in \[0, 1\], got -0.1"),
        (
            {"strength": 0.01},
            "strength must leave at least one step to do, got 0.01 of num_inference_steps 20",
        ),
        ({"class_name": "hat", "project_start": True}, "got 'hat'"),
        ({"prompt": "a hat", "project_start": True}, "class_name must be one of mug, shoe, got None"),
        ({"project_start": True, "height": 64}, "height and width must be 32 x 32 or 32 x 48"),
        ({"image": np.zeros((32, 32, 3))}, "image must be PIL pictures or latents of 4 channels, got array"),
        ({"image": torch.zeros(1, 3, 32, 32)}, r"latents of 4 channels, got a tensor \(1, 3, 32, 32\)"),
        ({"image": []}, r"image must be PIL pictures or latents of 4 channels, got \[\]"),
        ({"image": None}, "image must be PIL pictures or latents of 4 channels, got None"),
        ({"image": PICTURES * 2}, "x_start must be one, one for each of 1 prompts"),
    ],
    "Inpaint": [
        ({"strength": 1.5}, r"strength must be in \[0, 1\], got 1.5"),
        (
            {"strength": 0.01},
            "strength must leave at least one step to do, got 0.01 of num_inference_steps 20",
        ),
        ({"class_name": "hat"}, "got 'hat'"),
        ({"prompt": "a hat"}, "class_name must be one of mug, shoe, got None"),
        ({"height": 64}, "height and width must be 32 x 32 or 32 x 48"),
        ({"padding_mask_crop": 4}, "padding_mask_crop must be None unless start is 'none', got 4"),
        ({"project_start": True}, "project_start must come with start_image or x_start, got neither"),
        (
            {"x_start": noise_of(size=(8, 12))},
            "height and width must be 32 x 48, the size of the start, got 32",
        ),
        ({"x_start": noise_of(size=(8, 12)), "strength": 0.5}, "x_start must be shaped like noise"),
        ({"image": PICTURES}, "image must be one, or as many as divide 1 pictures, got 2"),
        ({"mask_image": []}, "mask_image must be one, or as many as divide 1 pictures, got 0"),
    ],
}


@pytest.mark.parametrize(
    ("task", "wrong", "message"), [(task, *case) for task in WRONG for case in WRONG[task]]
)
def test_what_is_wrong_is_said(make, task, wrong, message):
    call = {"prompt": "a mug", "image": PICTURES[0], "num_inference_steps": STEPS}
    call |= {} if task == "Img2Img" else {"mask_image": HOLE}
    with pytest.raises(ValueError, match=message):
        make(task)(**call | wrong)


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
@pytest.mark.parametrize(
    "needy", [{"class_name": "mug"}, {"project_start": True, "start_image": PICTURES[0]}]
)
def test_what_needs_a_start_distribution_is_refused_without_one(make, task, needy):
    call = {"image": PICTURES[0], **needy}
    if task == "Img2Img":
        call.pop("start_image", None)
    with pytest.raises(ValueError, match=f"{next(iter(needy))} must come with a start distribution"):
        make(task, start_distribution=None)(
            "a mug", **call, **({"mask_image": HOLE} if task == "Inpaint" else {})
        )


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_models_may_wait_off_the_device(make, task):
    call = {"image": PICTURES[0], "strength": 1.0} | ({} if task == "Img2Img" else {"mask_image": HOLE})
    pipe = make(task)
    there = final(pipe, "a mug", **call)
    pipe.enable_model_cpu_offload(device="cpu")
    try:
        np.testing.assert_array_equal(final(pipe, "a mug", **call), there)
    finally:
        pipe.remove_all_hooks()

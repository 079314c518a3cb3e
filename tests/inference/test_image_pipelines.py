"""Image-to-image and inpainting: what reaches the UNet, the known pixels, diffusers' own pictures, sizes."""

import diffusers
import numpy as np
import pytest
import torch
from onbrand import inference
from onbrand.pca import StartDistribution, vae_fingerprint
from PIL import Image

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
    """A pipeline of ours by task ("Img2Img", "Inpaint", ""), with its start distribution unless it is None."""

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
    x_start = distribution.mean[:1]
    if task == "Inpaint":
        call |= {"mask_image": HOLE}
    ours, timestep = reached(
        make(task, name), "a mug", **call, **({"x_start": x_start} if call.get("mask_image") else {}),
        generator=seeded(),
    )  # fmt: skip
    _, told = reached(make(task, name, theirs=True), "a mug", **call)
    x_start = x_start if task == "Inpaint" else encoded(parts["vae"], PICTURES[0])
    assert timestep == told
    torch.testing.assert_close(ours, closed_form(parts, x_start, noise_of(), told), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("timesteps", [[999, 700, 400, 100, 50]])
def test_a_custom_schedule(make, reached, parts, timesteps):
    call = {"timesteps": timesteps, "strength": 0.6, "num_inference_steps": None}
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
    _, told = reached(make("Img2Img", theirs=True), "a mug", PICTURES[0])
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
    call = {"strength": strength, "num_inference_steps": 50, "height": 32, "width": 32}
    ours, t = reached(make("Inpaint"), "a mug", PICTURES[0], HOLE, **call, generator=seeded())
    if t >= OFFSET_FROM:
        torch.testing.assert_close(ours, closed_form(parts, distribution.mean[:1], noise_of(), t))
    else:
        theirs, _ = reached(
            make("Inpaint", theirs=True), "a mug", PICTURES[0], HOLE, **call, generator=seeded()
        )
        assert torch.equal(ours, theirs)
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

    pipe, steps = make("Inpaint", name), 10
    call = {"strength": strength, "x_start": 3 * distribution.mean[:1], "callback_on_step_end": keep}
    pipe("a mug", PICTURES[0], HOLE, num_inference_steps=steps, generator=seeded(), **call)
    schedule = pipe.scheduler.timesteps[-len(seen) :]
    x = encoded(parts["vae"], PICTURES[0])
    for i, latents in enumerate(seen[:-1]):
        if hasattr(pipe.scheduler, "sigmas") and pipe.scheduler.init_noise_sigma != 1:
            latents = latents / (1 + pipe.scheduler.sigmas[i + 1 - len(schedule) - 1] ** 2).sqrt()
        known = closed_form(parts, x, noise_of(), schedule[i + 1])
        torch.testing.assert_close(latents[~IN_HOLE.expand_as(x)], known[~IN_HOLE.expand_as(x)], **CLOSE)
    torch.testing.assert_close(seen[-1][~IN_HOLE.expand_as(x)], x[~IN_HOLE.expand_as(x)], **CLOSE)
    assert not torch.allclose(seen[-1][IN_HOLE.expand_as(x)], x[IN_HOLE.expand_as(x)], atol=0.1)


CLOSE = {"rtol": 1e-3, "atol": 1e-3}

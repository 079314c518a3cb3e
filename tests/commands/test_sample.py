"""`onbrand sample`: what it draws, writes, shares out and refuses."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from onbrand.__main__ import app
from onbrand.commands.prompts import read_galleries
from onbrand.commands.request import Request
from onbrand.data.catalogue import Catalogue
from onbrand.data.picture import Picture
from onbrand.data.transform import ImageTransform
from onbrand.inference import (
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
    load_pipeline,
)
from onbrand.inference.aggregation.turns import Turns
from onbrand.inference.contrastive import ContrastiveNoise
from onbrand.inference.couplings import Repulsive
from onbrand.inference.generate import generate
from onbrand.inference.learned import LearnedCoupling
from onbrand.inference.size import picture_size
from onbrand.pca import Sampler, StartDistribution
from onbrand.train.conditions import Conditions
from PIL import Image
from typer.testing import CliRunner

QUICK = ("--steps", 2, "--spacing", "trailing")


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["sample", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def pixels(picture: object) -> np.ndarray:
    return np.asarray(picture, dtype=int)


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def recipe_of(file: Path) -> dict:
    return json.loads(Image.open(file).text["onbrand"])


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> Path:
    """A pipeline with a start distribution of two classes; treat it as read-only."""
    distribution = StartDistribution.fit(
        3 * torch.randn(20, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0)) + 1,
        torch.arange(20) % 2,
        class_names=["mug", "shoe"],
        components=2,
        caption_prefixes={"mug": "a mug", "shoe": "a shoe"},
        samplers=[("DDIMScheduler", 20, None)],
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=distribution).save_pretrained(
        folder
    )
    return folder


def test_a_recipe_draws_its_picture_again(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = (
        "--count",
        2,
        "--scheduler",
        "dpm++-karras",
        "--negative",
        "dark",
        "--guidance",
        2,
        "--seed",
        5,
    )
    invoke(checkpoint, "a mug", "a shoe", *options, *QUICK, "-o", out)
    names = {"0000.png", "0001.png", "0002.png", "0003.png", "samples.json", "sheet.jpg"}
    assert {file.name for file in out.iterdir()} == names
    listed = json.loads((out / "samples.json").read_text())
    assert [(row["prompt"], row["class"], row["seed"]) for row in listed] == [
        ("a mug", "mug", 5), ("a mug", "mug", 6), ("a shoe", "shoe", 7), ("a shoe", "shoe", 8),
    ]  # fmt: skip
    recipe = recipe_of(out / "0002.png")
    assert listed[2] == {"file": "0002.png", **recipe}
    assert recipe["start"] == "draw"
    assert recipe["scheduler_config"] == {"timestep_spacing": "trailing", "use_karras_sigmas": True}
    stored = checkpoint / "start_distribution" / "diffusion_pytorch_model.safetensors"
    assert recipe["start_distribution"] == hashlib.sha256(stored.read_bytes()).hexdigest()
    assert recipe["versions"]["diffusers"] == diffusers.__version__

    pipe = load_pipeline(recipe["checkpoint"])
    scheduler = getattr(diffusers, recipe["scheduler"])
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **recipe["scheduler_config"])
    pipe.set_progress_bar_config(disable=True)
    (again,) = pipe(
        recipe["prompt"],
        negative_prompt=recipe["negative_prompt"],
        class_name=recipe["class"],
        start=recipe["start"],
        num_inference_steps=recipe["steps"],
        guidance_scale=recipe["guidance"],
        height=recipe["height"],
        width=recipe["width"],
        generator=torch.Generator().manual_seed(recipe["seed"]),
    ).images
    assert np.abs(pixels(again) - pixels(Image.open(out / "0002.png"))).max() <= 1


def test_viewers_are_told_in_their_own_words(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    invoke(
        checkpoint, "a mug: red, blue", "--negative", "dark", "--scheduler", "euler-a", "--count", 1, *QUICK,
        "-o", out,
    )  # fmt: skip
    assert Image.open(out / "0000.png").text["parameters"] == (
        "a mug: red, blue\nNegative prompt: dark\nSteps: 2, Sampler: Euler a, CFG scale: 3.0, Seed: 0, "
        "Size: 32x32, Model: model, Start: draw, Class: mug, Version: onbrand 0.1.0"
    )


def test_the_same_command_gives_the_same_bits_and_another_loses_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    command = (checkpoint, "a mug", "a shoe", "--count", 2, *QUICK)
    for out in (one, two):
        invoke(*command, "-o", out)
    before = hashes(one)
    assert hashes(two) == before
    (one / "notes.txt").write_text("mine")
    invoke(*command, "-o", one)
    assert hashes(one).items() > before.items()
    rule = "--output must be a new folder, or one with pictures of the same recipe, got "
    others = {
        "where seed is 0 instead of 1": ("--seed", 1),
        "where start is 'draw' instead of 'mean'": ("--start", "mean"),
        "where scheduler is 'DDIMScheduler' instead of 'UniPC": ("--scheduler", "unipc"),
        "with 4 pictures for 6": ("--count", 3),
    }
    for message, options in others.items():
        with pytest.raises(ValueError, match=f"{rule}.*{message}"):
            invoke(*command, *options, "-o", one)
    (two / "samples.json").unlink()
    with pytest.raises(ValueError, match=f"{rule}.*which holds pictures and no samples.json"):
        invoke(*command, "-o", two)
    (two / "samples.json").write_text("{")
    with pytest.raises(ValueError, match=f"{rule}.*whose samples.json cannot be read"):
        invoke(*command, "-o", two)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output must be a folder, got the file"):
        invoke(*command, "-o", tmp_path / "file")
    assert hashes(one).items() > before.items()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "one", "two"]


def test_without_an_output_the_next_free_folder_is_taken(
    checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for prompt in ("a mug", "a shoe", "a mug"):
        invoke(checkpoint, prompt, "--count", 1, *QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples", "samples-2"]
    assert recipe_of(tmp_path / "samples-2" / "0000.png")["prompt"] == "a shoe"


def test_a_run_stands_for_its_model(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text("")
    invoke(tmp_path / "run", "a mug", "--count", 1, *QUICK, "-o", tmp_path / "out")
    assert (tmp_path / "out" / "0000.png").exists()


def test_retrained_weights_are_another_recipe(checkpoint: Path, tiny, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    pipe = load_pipeline(checkpoint)
    pipe.save_pretrained(copy)
    invoke(copy, "a mug", "--count", 1, *QUICK, "-o", out)
    pipe.unet.conv_out.bias.data[-1] += 1
    pipe.save_pretrained(copy)
    with pytest.raises(ValueError, match="where weights is '"):
        invoke(copy, "a mug", "--count", 1, *QUICK, "-o", out)


def test_a_call_that_fails_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    from onbrand.commands import pictures

    def fail(*arguments: object, **named: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(pictures, "save_picture", fail)
    with pytest.raises(OSError, match="no space"):
        invoke(checkpoint, "a mug", *QUICK, "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_prompts_from_a_text_file(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\n")
    invoke(tiny_base, f"@{file}", "--count", 1, *QUICK, "-o", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    with pytest.raises(ValueError, match=r"prompt file must exist, got 'nowhere.txt'"):
        invoke(tiny_base, "@nowhere.txt")
    file.write_text("\n")
    with pytest.raises(ValueError, match="prompts must be at least one"):
        invoke(tiny_base, f"@{file}")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"prompt file must be text in UTF-8, got '.*prompts.txt'"):
        invoke(tiny_base, f"@{file}")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_say_what_is_theirs(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    rows = [
        {"prompt": "mug, red", "class": "mug", "seed": 40, "negative_prompt": "dark"},
        {"prompt": "a thing"},
    ]
    file = tmp_path / f"prompts.{kind}"
    if kind == "csv":
        file.write_text('prompt,class,seed,negative_prompt\n"mug, red",mug,40,dark\na thing,,,\n')
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    options = ("--count", 2, "--class", "shoe", "--negative", "blurred", "--seed", 10)
    invoke(checkpoint, f"@{file}", *options, *QUICK, "-o", tmp_path / "out")
    drawn = [recipe_of(tmp_path / "out" / f"{i:04d}.png") for i in range(4)]
    assert [(r["prompt"], r["class"], r["seed"], r["negative_prompt"]) for r in drawn] == [
        ("mug, red", "mug", 40, "dark"), ("mug, red", "mug", 41, "dark"),
        ("a thing", "shoe", 12, "blurred"), ("a thing", "shoe", 13, "blurred"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", 'prompt,class\n"a red\nmug",mug\n'),
        ("p.jsonl", '{"prompt": "a red\\nmug", "class": "mug"}\n'),
        ("p.jsonl", '{"prompt": "a red\u2028mug", "class": "mug"}\n'),
    ],
)
def test_a_prompt_of_several_lines_stays_whole(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    [gallery] = read_galleries([f"@{file}"], count=1, class_name=None, negative=None, seed=0)
    assert gallery.prompt in ("a red\nmug", "a red\u2028mug")
    assert gallery.class_name == "mug"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt', "line 2 must be JSON, got"),
        ("p.jsonl", '["a"]', r"line 1 must be an object with a prompt, got \['a'\]"),
        ("p.jsonl", '{"prompt": "a", "clas": "mug"}', "must have no fields but prompt, class, .*got 'clas'"),
        ("p.jsonl", '{"prompt": 3}', "line 1: prompt must be text, got 3"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "seed must be an integer from 0 to .*, got -1"),
        ("p.csv", "prompt,seed\na,1.5\n", "line 2: seed must be an integer from 0 to .*, got '1.5'"),
        ("p.csv", "class\nmug\n", "line 2: prompt must be text, got None"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        invoke("anything", f"@{file}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--class", "mugg"), r"--class: .* must be one of mug, shoe, got 'mugg' \(did you mean 'mug'\?\)"),
        (("--class", "mugg", "--start", "none"), "--class: .* must be one of mug, shoe, got 'mugg'"),
        ((), "--class: class_name must be one of mug, shoe, got None and no caption prefix begins"),
        (("--scheduler", "unpic"), r"--scheduler: .*\(nearest: unipc\), got 'unpic'"),
        (("--spacing", "even"), "--spacing: spacing must be one of leading, trailing, linspace, got 'even'"),
        (("--steps", 2000), "--scheduler and --steps: .*2000"),
        (
            ("--scheduler", "EDMEulerScheduler"),
            "--scheduler and --steps: scheduler must be one that noises .*, got EDMEuler",
        ),
        (
            ("--scheduler", "FlowMatchEulerDiscreteScheduler"),
            "--scheduler: scheduler must be one that a Stable",
        ),
        (("--scheduler", "VQDiffusionScheduler"), "--scheduler: .*num_vec_classes"),
        (("--size", 48, 32, "--class", "mug"), r"--size must be 32 32 \(height and width\) as the start"),
        (("--size", 30, 32, "--start", "none"), "--size must be two multiples of 8, got 30 32"),
        (("--start", "middle"), "--start must be mean, draw or none, got 'middle'"),
        (("--start-image", "nowhere.png"), "--start-image must be an existing picture, got nowhere.png"),
        (("--start-image", __file__), "--start-image must be a picture, got .*, which is none"),
        (("--start-image", "float.tif"), "--start-image must be a picture of 8-bit or 16-bit pixels, got .*"),
        (("--condition", "nowhere.png"), "--condition must be an existing picture, got nowhere.png"),
        (("--project",), "--project must come with --start-image, got none"),
        (("--lora", "nowhere"), "--lora must be an existing file or folder, got nowhere"),
        (("--dtype", "half"), "--dtype must be one of float32, float16, bfloat16, got 'half'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(
    checkpoint: Path, tmp_path: Path, tmp_path_factory, monkeypatch, options: tuple, message: str
) -> None:
    from onbrand.commands import checkpoint as opened

    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(opened, "load_pipeline", fail)
    monkeypatch.chdir(tmp_path_factory.mktemp("pictures"))
    Image.new("F", (32, 32)).save("float.tif")
    with pytest.raises(ValueError, match=message) as error:
        invoke(checkpoint, "a thing", "-o", tmp_path / "out", *options)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_checkpoint_draws_and_says_so_once(tiny_base: Path, tmp_path: Path) -> None:
    said = invoke(tiny_base, "a mug", "a hat", "--count", 1, *QUICK, "-o", tmp_path / "out")
    assert said.count("no start distribution") == 1
    assert f"note: {tiny_base} has no start distribution: it samples as a plain pipeline" in said
    recipe = recipe_of(tmp_path / "out" / "0000.png")
    assert (recipe["start"], recipe["class"], recipe["start_distribution"]) == ("none", None, None)
    picture = tmp_path / "p.png"
    Image.new("RGB", (32, 32)).save(picture)
    for options, message in {
        ("--class", "mug"): "--class must not be given for",
        ("--start", "mean"): "--start must be none for .*, which has no start distribution, got 'mean'",
        ("--start-image", picture, "--project"): "--project must not be given for",
        ("--condition", picture): "--condition must not be given for .*, which has no ControlNet",
    }.items():
        with pytest.raises(ValueError, match=message):
            invoke(tiny_base, "a mug", *options, "-o", tmp_path / "other")


def test_a_controlnet_needs_its_condition(tiny, tmp_path: Path) -> None:
    parts = tiny.make_components()
    controlnet = tiny.make_controlnet(parts["unet"], effect=10.0)
    diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=controlnet).save_pretrained(
        tmp_path / "model"
    )
    with pytest.raises(
        ValueError, match=r"--condition must be a picture for .*, which has a ControlNet, got"
    ):
        invoke(tmp_path / "model", "a mug", "-o", tmp_path / "out")
    drawn = []
    for shade in ("black", "white"):
        picture = tmp_path / f"{shade}.png"
        Image.new("RGB", (32, 32), shade).save(picture)
        invoke(tmp_path / "model", "a mug", "--condition", picture, "--count", 1, "--trace", *QUICK,
               "-o", tmp_path / shade)  # fmt: skip
        drawn.append(pixels(Image.open(tmp_path / shade / "0000.png")))
    assert np.abs(drawn[0] - drawn[1]).max() > 1


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_condition_is_shown_as_in_training(tiny, tmp_path: Path, fit: str) -> None:
    transform = ImageTransform(32, 32, fit=fit, backdrop="#204060")
    start = StartDistribution.fit(
        torch.randn(8, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0)),
        torch.zeros(8, dtype=torch.long),
        class_names=["mug"],
        image_transform=transform.to_dict(),
    )
    parts = tiny.make_components()
    pipeline = OffsetStableDiffusionControlNetPipeline(
        **parts, controlnet=tiny.make_controlnet(parts["unet"]), start_distribution=start
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    pictures = {
        "depth.png": Image.fromarray(wide),
        "clear.png": Image.merge("LA", [Image.linear_gradient("L").resize((40, 24))] * 2),
        "turned.jpg": Image.fromarray((wide // 257).astype(np.uint8)),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name, **({"exif": turned} if name == "turned.jpg" else {}))
        catalogue = Catalogue([Picture(tmp_path / name, "a mug", "mug", condition=tmp_path / name,
                                       backdrop=transform.backdrop)])  # fmt: skip
        request = Request("model", [], 1, condition=tmp_path / name)
        shown = request.condition_for(pipeline, (32, 32))
        assert np.array_equal(shown, Conditions(catalogue, "column", [transform]).image(0))


def test_a_sampler_below_the_trained_range_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    said = invoke(checkpoint, "a mug", "a shoe", "--count", 20, "--steps", 2, "-o", tmp_path / "out")
    lines = [line for line in said.splitlines() if "first timestep" in line]
    assert len(lines) == 1
    assert lines[0].startswith("note: the sampler's first timestep 501 lies below 950")
    assert ".py" not in said.replace(str(tmp_path), "")
    quiet = invoke(checkpoint, "a mug", "--steps", 2, "--spacing", "trailing", "-o", tmp_path / "other")
    assert "first timestep" not in quiet


def test_starts_from_a_picture_and_from_its_projection(checkpoint: Path, tmp_path: Path) -> None:
    picture = tmp_path / "start.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    pipe = load_pipeline(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    drawn = []
    for options, project in (((), False), (("--project",), True)):
        out = tmp_path / f"project_{project}"
        invoke(checkpoint, "a mug", "--start-image", picture, *options, "--count", 1, *QUICK, "-o", out)
        recipe = recipe_of(out / "0000.png")
        assert (recipe["start"], recipe["project"]) == (None, project)
        assert recipe["start_image"]["sha256"] == hashlib.sha256(picture.read_bytes()).hexdigest()
        (expected,) = pipe(
            "a mug", start_image=Image.open(picture), project_start=project, num_inference_steps=2,
            guidance_scale=3.0, generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        drawn.append(pixels(Image.open(out / "0000.png")))
        assert np.abs(drawn[-1] - pixels(expected)).max() <= 1
    assert np.abs(drawn[0] - drawn[1]).max() > 1
    with pytest.raises(ValueError, match="--start must not be given beside --start-image, got 'mean'"):
        invoke(checkpoint, "a mug", "--start-image", picture, "--start", "mean")


def save_lora(pipe: object, folder: Path) -> None:
    """A LoRA of random weights for the pipeline's UNet."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    type(pipe).save_lora_weights(folder, unet_lora_layers=layers)


def test_a_lora_is_added_if_it_fits(checkpoint: Path, tiny, tmp_path: Path) -> None:
    save_lora(load_pipeline(checkpoint), tmp_path / "fits")
    save_lora(diffusers.StableDiffusionXLPipeline(**tiny.make_xl_components()), tmp_path / "xl")
    lora = tmp_path / "fits" / "pytorch_lora_weights.safetensors"
    drawn = []
    for options in ((), ("--lora", lora, "--lora-strength", 0), ("--lora", lora)):
        out = tmp_path / f"out{len(drawn)}"
        invoke(checkpoint, "a mug", "--count", 1, *options, *QUICK, "-o", out)
        drawn.append(pixels(Image.open(out / "0000.png")))
    assert np.array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 0
    assert recipe_of(out / "0000.png")["lora_strength"] == 1
    assert recipe_of(out / "0000.png")["lora"] == {
        "file": str(lora), "sha256": hashlib.sha256(lora.read_bytes()).hexdigest(),
    }  # fmt: skip
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    for misfit in (tmp_path / "xl" / "pytorch_lora_weights.safetensors", bad):
        with pytest.raises(ValueError, match=f"--lora must fit .*, got {misfit}") as error:
            invoke(checkpoint, "a mug", "--lora", misfit, "-o", tmp_path / "other")
        assert "\n" not in str(error.value)


def test_precision_and_offload(checkpoint: Path, tmp_path: Path) -> None:
    drawn = []
    for dtype in ("float32", "bfloat16"):
        invoke(checkpoint, "a mug", "--dtype", dtype, "--count", 1, *QUICK, "-o", tmp_path / dtype)
        assert recipe_of(tmp_path / dtype / "0000.png")["dtype"] == dtype
        drawn.append(pixels(Image.open(tmp_path / dtype / "0000.png")))
    assert 0 < np.abs(drawn[0] - drawn[1]).mean() < 8
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="--offload must be left out where there is no accelerator"):
            invoke(checkpoint, "a mug", "--offload", "-o", tmp_path / "other")


def test_a_gallery_is_coupled_and_its_recipe_says_so(checkpoint: Path, tmp_path: Path) -> None:
    options = ("--count", 3, "--coupling", "repulsive", "--contrastive", 1, *QUICK)
    invoke(checkpoint, "a mug", "a shoe", *options, "-o", tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "samples.json").read_text())
    place = {"name": "repulsive", "contrastive": 1, "of": 3}
    expected = [(seed, place | {"picture": j}) for seed in (0, 3) for j in range(3)]
    assert [(row["seed"], row["coupling"]) for row in listed] == expected
    pipe = load_pipeline(checkpoint)
    pictures = generate(
        pipe, ["a shoe"], count=3, seed=3, noise=ContrastiveNoise(Repulsive(), steps=1),
        sampler=Sampler("DDIMScheduler", 2, "trailing"), start=pipe.start_distribution.default_start,
    )  # fmt: skip
    for picture, file in zip(pictures, ("0003.png", "0004.png", "0005.png"), strict=True):
        assert np.abs(pixels(picture) - pixels(Image.open(tmp_path / "out" / file))).max() <= 1
    # the same call fills the same folder, another coupling is another recipe
    before = hashes(tmp_path / "out")
    invoke(checkpoint, "a mug", "a shoe", *options, "-o", tmp_path / "out")
    assert hashes(tmp_path / "out") == before
    with pytest.raises(ValueError, match=r"where coupling is .*'repulsive'"):
        invoke(checkpoint, "a mug", "a shoe", "--count", 3, "--coupling", "identical", *QUICK,
               "-o", tmp_path / "out")  # fmt: skip


def test_a_learned_coupling_is_named_by_its_file(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.safetensors"
    LearnedCoupling(torch.eye(2), reward="none").save(file)
    invoke(checkpoint, "a mug", "--count", 2, "--coupling", file, *QUICK, "-o", tmp_path / "out")
    (name,) = {
        json.dumps(row["coupling"]["name"]) for row in json.loads((tmp_path / "out/samples.json").read_text())
    }
    assert json.loads(name) == {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--coupling", "repulsve"), "--coupling: coupling must be one of .*nearest: repulsive"),
        (("--coupling", "rho=-0.9"), "--coupling: rho must be .*-0.9"),
        (("--coupling", "antithetic", "--count", 3), "--coupling: .*got 3"),
        (("--coupling", "gone.safetensors"), "--coupling: .*gone.safetensors"),
    ],
)
def test_couplings_that_cannot_be_are_refused_at_once(options: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invoke("no/checkpoint", "a mug", *options)


def test_fresh_noise_on_top_of_a_coupling_is_noted(checkpoint: Path, tmp_path: Path) -> None:
    call = (checkpoint, "a mug", "--count", 2, "--scheduler", "euler-a", "--steps", 2)
    said = invoke(*call, "--coupling", "repulsive", "-o", tmp_path / "coupled")
    assert said.count("note: EulerAncestralDiscreteScheduler adds fresh noise") == 1
    assert "fresh noise" not in invoke(*call, "-o", tmp_path / "alone")


def test_an_object_gets_new_backgrounds(checkpoint: Path, tmp_path: Path) -> None:
    size = tuple(reversed(picture_size(load_pipeline(checkpoint))))
    picture, mask = Image.new("RGB", size, "white"), Image.new("L", size)
    for canvas, colour in ((picture, "red"), (mask, 255)):
        canvas.paste(colour, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    picture.save(tmp_path / "object.png")
    mask.save(tmp_path / "mask.png")
    call = (checkpoint, "a mug", "--background-of", tmp_path / "object.png", "--count", 2, *QUICK)
    invoke(*call, "--mask", tmp_path / "mask.png", "--optimisation-steps", 1, "-o", tmp_path / "out")
    first, second = [recipe_of(tmp_path / "out" / f"000{i}.png") for i in range(2)]
    assert first["coupling"] == {"name": "repulsive", "contrastive": 0, "picture": 0, "of": 2}
    assert second["coupling"]["picture"] == 1
    assert (first["guidance"], first["optimisation_steps"]) == (1, 1)
    assert first["mask"]["file"] == str(tmp_path / "mask.png")
    assert hashes(tmp_path / "out")["0000.png"] != hashes(tmp_path / "out")["0001.png"]
    refusals = {
        "--guidance must be 1 beside --background-of, got 3": ("--guidance", 3),
        "--scheduler must be ddim beside --background-of, got euler": ("--scheduler", "euler"),
        "--negative must not be given beside --background-of": ("--negative", "dark"),
        "--mask must be an existing picture, got gone.png": ("--mask", "gone.png"),
        "--trace must not be given beside --background-of": ("--trace",),
    }
    for message, options in refusals.items():
        with pytest.raises(ValueError, match=message):
            invoke(*call, *options)
    with pytest.raises(ValueError, match="--mask must come with --background-of"):
        invoke(checkpoint, "a mug", "--mask", tmp_path / "mask.png")


def test_a_trace_has_a_column_a_step(checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    sizes = {}
    for model in (checkpoint, tiny_base):
        out = tmp_path / model.name
        invoke(model, "a mug", "--count", 1, "--negative", "dark", *QUICK, "--trace", "-o", out)
        sizes[model] = Image.open(out / "trace.png").size
    assert sizes[checkpoint][1] > 1.5 * sizes[tiny_base][1]
    before = hashes(tmp_path / checkpoint.name)
    invoke(checkpoint, "a mug", "--count", 1, "--negative", "dark", *QUICK, "--trace",
           "-o", tmp_path / checkpoint.name)  # fmt: skip
    assert hashes(tmp_path / checkpoint.name) == before


def test_two_processes_draw_the_bytes_of_one(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,negative_prompt\na mug,\na shoe,\na mug,dark\na shoe,dark\na mug,\n")
    command = ["-m", "onbrand", "sample", checkpoint, f"@{file}", "--count", 12, *QUICK, "--trace", "-o"]
    port = ["--master_port", 20000 + (os.getpid() + 7) % 20000]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", 2, *port]
    said = []
    for name, launcher in (("one", []), ("two", launch)):
        done = subprocess.run(
            [sys.executable, *map(str, [*launcher, *command, tmp_path / name])],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(done.stdout.replace(str(tmp_path / name), ""))
    assert said[0] == said[1]
    one = hashes(tmp_path / "one")
    assert len(one) == 63
    assert hashes(tmp_path / "two") == one


def test_checkpoints_draw_their_first_steps_together(checkpoint: Path, tmp_path: Path) -> None:
    call = (checkpoint, "a mug", "a shoe", "--count", 2, *QUICK)
    invoke(*call, "-o", tmp_path / "alone")
    invoke(*call, "--aggregate", f"{checkpoint}:1", "--aggregate-steps", 1, "-o", tmp_path / "first")
    invoke(*call, "--aggregate", f"{checkpoint}:0.5", "--aggregate-steps", 1, "-o", tmp_path / "both")
    alone, first, both = (
        [pixels(Image.open(tmp_path / name / f"000{i}.png")) for i in range(4)]
        for name in ("alone", "first", "both")
    )
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(alone, first, strict=True))
    assert not all(np.abs(a - b).max() <= 1 for a, b in zip(alone, both, strict=True))
    recipe = recipe_of(tmp_path / "both" / "0003.png")
    assert (recipe["class"], recipe["seed"]) == ("shoe", 3)
    other = {"checkpoint": str(checkpoint), "weight": 0.5, "steps": 1, "start": recipe["start"]}
    other |= {key: recipe[key] for key in ("weights", "start_distribution")}
    assert recipe["aggregate"] == [other]


def test_each_checkpoint_of_an_aggregate_has_its_own_start(
    checkpoint: Path, tiny_base: Path, tmp_path: Path
) -> None:
    call = (tiny_base, "a mug", "--count", 1, *QUICK, "--aggregate-steps", 1)
    for name, other in (("start", checkpoint), ("plain", tiny_base)):
        invoke(*call, "--aggregate", f"{other}:0.5", "-o", tmp_path / name)
    recipe = recipe_of(tmp_path / "start" / "0000.png")
    assert recipe["start"] == "none"
    assert recipe["aggregate"][0]["start"] in ("mean", "draw")
    drawn = [pixels(Image.open(tmp_path / name / "0000.png")) for name in ("start", "plain")]
    assert np.abs(drawn[0] - drawn[1]).max() > 1


def test_checkpoints_that_do_not_fit_in_memory_are_told_of_offloading(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **call: object) -> None:
        raise torch.OutOfMemoryError("out of memory\nand a remedy for others")

    monkeypatch.setattr("onbrand.commands.aggregated.AggregatedPipeline.__call__", full)
    rule = "--aggregate must name checkpoints that fit in memory without --offload, got out of memory$"
    with pytest.raises(ValueError, match=rule):
        invoke(tiny_base, "a mug", "--aggregate", f"{tiny_base}:0.5", "--steps", 3, "-o", tmp_path / "out")


def test_offloaded_checkpoints_draw_what_the_others_do(
    checkpoint: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = (tiny_base, "a mug", "--count", 1, "--aggregate", f"{checkpoint}:0.5", "--steps", 4)
    invoke(*call, "-o", tmp_path / "all")
    monkeypatch.setattr("onbrand.commands.sample.check_offload", lambda *args: None)
    taken, take = [], Turns.take

    def seen(turns: Turns, model: int) -> None:
        assert turns.offload
        assert not any(getattr(pipeline, "_all_hooks", None) for pipeline in turns.pipelines)
        taken.append(model)
        take(turns, model)

    monkeypatch.setattr(Turns, "take", seen)
    invoke(*call, "--offload", "-o", tmp_path / "turns")
    assert taken[:3] == [0, 1, 0]  # whole checkpoints, not the models of each on its own
    drawn = [pixels(Image.open(tmp_path / name / "0000.png")) for name in ("all", "turns")]
    assert np.abs(drawn[0] - drawn[1]).max() == 0


@pytest.mark.parametrize(
    "options",
    [("--coupling", "repulsive"), ("--contrastive", 1), ("--aggregate", "B:1", "--steps", 3)],
)
def test_a_trace_is_of_a_picture_by_itself(options: tuple) -> None:
    with pytest.raises(ValueError, match=f"--trace must not be given beside {options[0]}"):
        invoke("no/checkpoint", "a mug", "--trace", *options)


def test_a_coupled_gallery_is_drawn_again_alone_where_the_sampler_adds_noise(
    checkpoint: Path, tmp_path: Path
) -> None:
    call = ("--count", 2, "--coupling", "repulsive", "--scheduler", "euler-a", "--steps", 2)
    invoke(checkpoint, "a mug", "a shoe", *call, "-o", tmp_path / "both")
    invoke(checkpoint, "a shoe", *call, "--seed", 2, "-o", tmp_path / "alone")
    both, alone = [pixels(Image.open(tmp_path / file)) for file in ("both/0003.png", "alone/0001.png")]
    assert np.abs(both - alone).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--aggregate", "B"), "--aggregate must be CHECKPOINT:WEIGHT .*got 'B'"),
        (("--aggregate", "B:2"), "--aggregate must be CHECKPOINT:WEIGHT .*got 'B:2'"),
        (("--aggregate", "B:1") * 3, "--aggregate must be given once or twice, got 3 times"),
        (("--aggregate", "B:1", "--scheduler", "euler"), "--scheduler must be ddim or ddpm .*got euler"),
        (("--aggregate", "B:1", "--steps", 2), "--aggregate-steps must be at most --steps 2, got 3"),
        (("--aggregate-steps", 2), "--aggregate-steps must come with --aggregate, got 2 alone"),
        (("--optimisation-steps", 2), "--optimisation-steps must come with --background-of, got 2 alone"),
    ],
)
def test_aggregates_that_cannot_be_are_refused_at_once(options: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invoke("no/checkpoint", "a mug", *options)

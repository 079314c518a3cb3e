"""Learning a coupling: what is known to be best is found, and the same seed finds the same."""

import pytest
import torch
from onbrand.evaluation.gallery_rewards import brightness_split, ssim_diversity
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.learned import prompts_fingerprint
from onbrand.inference.skip_gradient import gallery
from onbrand.pca import Sampler
from onbrand.train.coupling import along_sphere, learn_coupling

SAMPLER = Sampler("DDIMScheduler", 1)
FAST = {"sampler": SAMPLER, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe(tiny):
    return OffsetStableDiffusionPipeline(**tiny.make_components())


@pytest.mark.parametrize("init", ["identity", "random"])
def test_ssim_finds_the_repulsive_coupling(pipe, init):
    told = []
    coupling = learn_coupling(
        pipe, ["a mug", "a shoe"], ssim_diversity, images=3, steps=40, learning_rate=0.1, init=init,
        advance=told.append, **FAST,
    )  # fmt: skip
    others = coupling.correlation[~torch.eye(3, dtype=torch.bool)]
    assert others.mean() == pytest.approx(-0.5, abs=0.03)
    assert others.max() < -0.3
    assert told == [1] * 40
    assert len(coupling.history) == 40
    assert coupling.reward == "ssim_diversity"
    assert coupling.prompts == prompts_fingerprint(["a mug", "a shoe"])
    assert coupling.settings["init"] == init
    assert coupling.settings["sampler"] == ["DDIMScheduler", 1, None]
    torch.testing.assert_close(coupling.matrix.norm(dim=1), torch.ones(3).double())


def test_the_reward_of_fresh_noise_rises(pipe):
    """Noise that was never learned from, the same for the first matrix and the learned one."""
    reward = ssim_diversity
    how = {"images": 2, "noises": 4, "init": "random", "learning_rate": 0.1, **FAST}
    first, learned = (learn_coupling(pipe, ["a mug"], reward, steps=steps, **how) for steps in (0, 15))
    assert first.history == ()
    earned = [
        sum(
            float(
                reward(gallery(pipe, "a mug", c.draw(2, (4, 8, 8), torch.Generator().manual_seed(s)), **FAST))
            )
            for s in range(100, 106)
        )
        for c in (first, learned)
    ]
    assert earned[1] > earned[0] + 0.1


def test_brightness_finds_the_best_blocks(pipe, monkeypatch):
    """Where brightness is linear in noise, the best coupling is known.

    With r inside each half and opposite halves the contrast is proportional to sqrt(1 + r) + 2 w sqrt(1 - r),
    highest where (1 - r) / (1 + r) = (2 w)^2; correlations across are -(1 + r) / 2 on average.
    """

    def drawn(pipeline, prompt, eps, **how):
        return 0.5 + eps.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 3, 2, 2)

    monkeypatch.setattr("onbrand.train.coupling.gallery", drawn)
    coupling = learn_coupling(
        pipe, ["a mug"], brightness_split(), images=4, steps=400, learning_rate=0.02, prompts_per_step=8
    )
    share = 0.36**2
    best = (1 - share) / (1 + share)
    found = coupling.correlation
    assert float(found[0, 1] + found[2, 3]) / 2 == pytest.approx(best, abs=0.05)
    assert float(found[:2, 2:].mean()) == pytest.approx(-(1 + best) / 2, abs=0.03)
    assert coupling.reward == "brightness_split(0.18)"


def test_one_seed_learns_one_matrix(pipe):
    how = {"images": 2, "noises": 3, "steps": 3, "prompts_per_step": 2, **FAST}
    prompts = ["a mug", "a shoe", "a lamp"]
    one, same, other = (learn_coupling(pipe, prompts, ssim_diversity, seed=s, **how) for s in (0, 0, 1))
    assert torch.equal(one.matrix, same.matrix)
    assert one.history == same.history
    assert not torch.allclose(one.matrix, other.matrix)


def test_the_first_reward_is_the_mean_over_its_prompts(pipe, monkeypatch):
    """Every prompt is used once a round, with its class, and the recorded reward is theirs."""
    seen = []

    def drawn(pipeline, prompt, eps, *, class_name, **how):
        seen.append((prompt, class_name))
        return eps

    monkeypatch.setattr("onbrand.train.coupling.gallery", drawn)
    prompts, names = ["a mug", "a shoe", "a lamp"], ["mug", "shoe", None]
    values = []

    def reward(pixels):
        values.append(pixels.square().mean())
        return values[-1]

    coupling = learn_coupling(
        pipe, prompts, reward, images=2, steps=2, prompts_per_step=3, class_names=names, **FAST
    )
    assert (
        sorted(seen[:3]) == sorted(seen[3:]) == sorted(zip(prompts, names, strict=True), key=lambda p: p[0])
    )
    assert coupling.history[0] == pytest.approx(sum(value.item() for value in values[:3]) / 3)


def test_the_gradient_along_a_row_is_dropped():
    rows = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    found = along_sphere(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), rows)
    torch.testing.assert_close(found, torch.tensor([[0.64, -0.48], [0.0, 3.0]]))


def test_the_base_is_named_without_the_way_to_it(pipe, monkeypatch, tmp_path):
    names = {}
    for name in ("some/model", str(tmp_path)):
        monkeypatch.setattr(pipe, "_internal_dict", {**pipe.config, "_name_or_path": name})
        names[name] = learn_coupling(pipe, ["a"], ssim_diversity, images=2, steps=0).base_model
    assert names == {"some/model": "some/model", str(tmp_path): tmp_path.name}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, r"prompts must be a list of at least one prompt, got \[\]"),
        ({"prompts": "a mug"}, "prompts must be a list of at least one prompt, got 'a mug'"),
        ({"class_names": ["mug"]}, "class_names must be one for each of 2 prompts, got 1"),
        ({"images": 1}, "images must be at least 2, got 1"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"prompts_per_step": 0}, "prompts_per_step must be at least 1, got 0"),
        ({"learning_rate": 0}, "learning_rate must be positive, got 0"),
        ({"init": "zeros"}, "init must be one of identity, random, got 'zeros'"),
        ({"noises": 2}, "noises must be at least 3 for 3 images from the identity, got 2"),
        ({"noises": 0, "init": "random"}, "noises must be at least 1 for a random init, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(pipe, settings, message):
    told = {"prompts": ["a mug", "a shoe"], "images": 3} | settings
    with pytest.raises(ValueError, match=f"^{message}$"):
        learn_coupling(pipe, told.pop("prompts"), ssim_diversity, **told)

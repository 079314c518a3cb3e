"""Attention maps: which layer, what they hold, and that the UNet does not notice."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from onbrand.inference.tickets.attention_maps import capture_maps, cross_attentions, find_layer
from onbrand.inference.tickets.shared_beginning import SharedBeginning, shares_beginning

SD_LAYER = "down_blocks.2.attentions.1.transformer_blocks.0.attn2"
TINY_LAYER = "down_blocks.2.attentions.0.transformer_blocks.0.attn2"
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def three_levels(tiny, **config):
    form = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return tiny.make_unet(**form | config)


@pytest.fixture
def unet(tiny):
    return three_levels(tiny)


def call(rows=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, 16, 16, generator=g), torch.tensor(981), torch.randn(rows, 9, 16, generator=g)


@torch.no_grad()
def output(unet, *arguments):
    return unet(*arguments).sample


def own_state(unet):
    """What a module carries of its own beside weights: hooks and replaced methods."""
    return [
        (len(m._forward_pre_hooks), len(m._forward_hooks), "forward" in m.__dict__) for m in unet.modules()
    ]


def big_unet(**config):
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


@pytest.mark.parametrize(
    "config",
    [
        {"sample_size": 64, "cross_attention_dim": 768},
        {"sample_size": 96, "cross_attention_dim": 1024, "use_linear_projection": True},
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (PLAIN, CROSS, CROSS),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 3),
        },
    ],
    ids=["1", "2", "xl"],
)
def test_the_layer_of_stable_diffusion(config):
    assert find_layer(big_unet(**config)) == (SD_LAYER, 4)


def test_each_layer_covers_what_its_map_says(unet):
    layers = cross_attentions(unet)
    assert set(layers.values()) == {2, 4}
    for name, factor in layers.items():
        with capture_maps(unet, name) as maps:
            output(unet, *call())
        assert maps[0].shape == (2, (16 // factor) ** 2, 9)


def test_layers_come_in_the_order_they_run(unet):
    ran = []
    for name in cross_attentions(unet):
        unet.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    output(unet, *call())
    assert ran == list(cross_attentions(unet))


def test_maps_are_those_of_the_plain_formula(unet):
    attn, seen = unet.get_submodule(TINY_LAYER), {}

    def keep(module, args, kwargs):
        seen["hidden"], seen["text"] = args[0], kwargs["encoder_hidden_states"]

    attn.register_forward_pre_hook(keep, with_kwargs=True)
    with capture_maps(unet, TINY_LAYER) as maps, torch.no_grad():
        unet(*call())
        query, key = (attn.head_to_batch_dim(x) for x in (attn.to_q(seen["hidden"]), attn.to_k(seen["text"])))
        expected = attn.get_attention_scores(query, key).unflatten(0, (2, attn.heads)).mean(1)
    torch.testing.assert_close(maps[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 16))
    assert maps[0].dtype == torch.float32


def test_the_output_keeps_its_bits_and_the_model_its_processors(unet):
    plain, processors, state = output(unet, *call()), dict(unet.attn_processors), own_state(unet)
    with capture_maps(unet, TINY_LAYER) as maps:
        captured = output(unet, *call())
    assert len(maps) == 1
    assert torch.equal(plain, captured)
    with pytest.raises(RuntimeError, match="boom"), capture_maps(unet, TINY_LAYER):
        raise RuntimeError("boom")
    assert all(processors[name] is now for name, now in unet.attn_processors.items())
    assert own_state(unet) == state
    assert torch.equal(plain, output(unet, *call()))


def test_a_stopped_pass_ends_at_the_layer(unet):
    ran = []
    for name in ("down_blocks.1", "mid_block", "up_blocks.0"):
        unet.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    with capture_maps(unet, TINY_LAYER) as whole:
        output(unet, *call())
    ran.clear()
    with capture_maps(unet, TINY_LAYER, stop=True) as maps:
        output(unet, *call())
        pytest.fail("the pass went on")
    assert ran == ["down_blocks.1"]
    assert torch.equal(maps[0], whole[0])


def test_a_layer_that_is_none_is_refused(unet, tiny):
    with pytest.raises(ValueError, match=rf"must be a cross-attention layer .* {TINY_LAYER}, got .*attn1'"):
        find_layer(unet, TINY_LAYER.replace("attn2", "attn1"))
    assert find_layer(unet, "mid_block.attentions.0.transformer_blocks.0.attn2")[1] == 4
    with pytest.raises(ValueError, match=r"no cross-attention runs at 1/4 .* got a UNet with down.*\(1/2\)"):
        find_layer(tiny.make_unet())


@pytest.mark.parametrize("times", [1, 3])
def test_a_shared_beginning_gives_the_same_maps(unet, times):
    latents, timestep, first = call(rows=2)
    state = own_state(unet)
    shared = SharedBeginning(unet, latents, timestep, first)
    for seed in (1, 2):  # other texts, one after the other
        texts = call(rows=2 * times, seed=seed)[2]
        many = latents.repeat(times, 1, 1, 1)
        with shared.replayed(times), capture_maps(unet, TINY_LAYER, stop=True) as maps:
            output(unet, many, timestep, texts)
        with capture_maps(unet, TINY_LAYER, stop=True) as plain:
            output(unet, many, timestep, texts)
        torch.testing.assert_close(maps[0], plain[0], atol=1e-6, rtol=0)
    recorded = [name for name, m in unet.named_modules() if m in shared.outputs]
    assert {"conv_in", "time_embedding", "down_blocks.0"} <= set(recorded)
    assert not [name for name in recorded if "attn2" in name or name.startswith(("down_blocks.2", "mid"))]
    assert own_state(unet) == state


def test_a_replayed_pass_that_fails_leaves_the_model_as_it_was(unet):
    shared, state = SharedBeginning(unet, *call()), own_state(unet)
    unet.conv_in.forward = unet.conv_in.forward  # as an offloaded module's
    with pytest.raises(RuntimeError, match="boom"), shared.replayed():
        raise RuntimeError("boom")
    assert "forward" in unet.conv_in.__dict__
    del unet.conv_in.forward
    assert own_state(unet) == state


def test_pooled_text_reaches_the_beginning(unet, tiny):
    assert shares_beginning(unet)
    assert not shares_beginning(tiny.make_xl_unet())

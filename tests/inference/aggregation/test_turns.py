"""Models that share modules or memory: adapters, devices and hooks at each turn, and afterwards."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from onbrand.inference import AggregatedPipeline
from onbrand.inference.aggregation.turns import Turns
from peft import LoraConfig

STEPS = 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(pipeline, prompt="a mug", *, seed=0, **call):
    how = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeded(seed)}
    return pipeline(prompt, **how | call).images


def add_adapters(pipeline, names):
    for i, name in enumerate(names):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
            pipeline.unet.add_adapter(config, adapter_name=name)
    return pipeline


def adapter_state(pipeline):
    layers = [m for m in pipeline.unet.modules() if hasattr(m, "scaling")]
    trainable = [p.requires_grad for p in pipeline.unet.parameters()]
    return [(list(m.active_adapters), m.disable_adapters, dict(m.scaling)) for m in layers], trainable


@pytest.mark.parametrize("others", [["b"], {"b": 0.5}, {"a": 2.0, "b": 1.0}, []])
def test_adapters_of_one_network_are_switched_at_each_turn(make, others):
    apart = [add_adapters(make(), ["a", "b"]) for _ in range(2)]
    apart[0].set_adapters(["a"])
    if others:
        apart[1].set_adapters(list(others), list(others.values()) if isinstance(others, dict) else None)
    else:
        apart[1].disable_lora()
    expected = draw(AggregatedPipeline(apart))
    shared = add_adapters(make(), ["a", "b"])
    shared.set_adapters(["a", "b"], [0.3, 0.7])
    shared.unet.requires_grad_(False)
    before = adapter_state(shared)
    aggregated = AggregatedPipeline([shared, shared], adapters=[["a"], others])
    assert torch.equal(draw(aggregated), expected)
    assert adapter_state(shared) == before
    assert not torch.allclose(draw(AggregatedPipeline([shared, shared])), expected, atol=1e-3)


def test_offloaded_models_take_turns_on_the_device(make, monkeypatch):
    pipelines = [make(), make(seed=1)]
    expected, log = draw(AggregatedPipeline(pipelines, steps=2)), []
    for name, pipeline in zip("12", pipelines, strict=True):
        plain_to, forward = pipeline.unet.to, pipeline.unet.forward

        def to(device, name=name, plain_to=plain_to):
            log.append(f"{name} to {device}")
            return plain_to(device)

        def shown(*args, name=name, forward=forward, **kwargs):
            log.append(f"{name} runs")
            return forward(*args, **kwargs)

        monkeypatch.setattr(pipeline.unet, "to", to)
        monkeypatch.setattr(pipeline.unet, "forward", shown)
    monkeypatch.setattr(StableDiffusionPipeline, "_execution_device", torch.device("cpu", 0))
    assert torch.equal(draw(AggregatedPipeline(pipelines, steps=2, offload=True)), expected)
    ins = {"1": ["2 to cpu", "1 to cpu:0"], "2": ["1 to cpu", "2 to cpu:0"]}
    turn = [*ins["1"], "1 runs", *ins["2"], "2 runs"]
    end = [*ins["1"], "1 runs", "1 runs", *ins["1"]]
    assert log == [*turn, *turn, *end]


@pytest.mark.parametrize("offload", [False, True])
def test_hooks_of_accelerate_are_left_to_work(make, offload):
    pipelines = [make(), make(seed=1)]
    expected, alone = draw(AggregatedPipeline(pipelines)), draw(pipelines[1])
    for pipeline in pipelines:
        pipeline.enable_model_cpu_offload(device="cpu")
    aggregated = AggregatedPipeline(pipelines, offload=offload)
    for _ in range(2):
        assert torch.equal(draw(aggregated), expected)
    for pipeline in pipelines:
        assert pipeline.unet._hf_hook in [hook.hook for hook in pipeline._all_hooks]
    assert torch.equal(draw(pipelines[1]), alone)


def test_modules_that_hooks_move_are_not_moved_by_turns(make):
    pipelines = [make(), make(seed=1)]
    pipelines[1].enable_model_cpu_offload(device="cpu")
    moved = []
    for module in (pipelines[0].unet, pipelines[1].unet):
        module.to = lambda device, module=module: moved.append(module)
    Turns(pipelines, [None, None], offload=True).take(1)
    assert moved == [pipelines[0].unet]

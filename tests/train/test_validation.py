"""The held-out loss: the same whatever happened before, the mean it says it is, alike on many processes."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.configs import Config
from onbrand.data import Catalogue, Picture
from onbrand.data.buckets import Buckets
from onbrand.pca import StartDistribution
from onbrand.train.models import load_base, prepare_networks, training_schedule
from onbrand.train.order import seeded
from onbrand.train.part import Part
from onbrand.train.step import training_loss
from onbrand.train.text import TokenIds
from onbrand.train.training import Training, set_up
from onbrand.train.validation import Validation, fixed_validation, spread

CLASSES = ["mug"] * 5 + ["bag"] * 2
BUCKET_IDS = torch.tensor([0, 0, 0, 1, 1, 0, 1])
LOW = 800


class FakeCache:
    """Latents of 8 x 8 or, in the second bucket, 8 x 16."""

    def __init__(self) -> None:
        draws = torch.randn(len(CLASSES), 4, 8, 16, generator=torch.Generator().manual_seed(3))
        self.latents = [each[..., : 8 * (1 + int(b))] for each, b in zip(draws, BUCKET_IDS, strict=True)]

    def means(self, rows: list[int]) -> torch.Tensor:
        return torch.stack([self.latents[row] for row in rows])


@pytest.fixture(scope="module")
def part() -> Part:
    pictures = [Picture(b"", f"a {name}", name) for name in CLASSES]
    return Part(Catalogue(pictures), FakeCache(), Buckets([(32, 32), (32, 64)], BUCKET_IDS))


def start_of(part: Part, *, offset_from: int = LOW) -> StartDistribution:
    """Class means of both sizes."""
    fitted = []
    for bucket in range(2):
        rows = (bucket == BUCKET_IDS).nonzero()[:, 0].tolist()
        fitted.append(
            StartDistribution.fit(
                part.cache.means(rows),
                part.catalogue.class_ids[rows],
                class_names=part.catalogue.class_names,
                offset_from=offset_from,
            )
        )
    fitted[0].add_bucket(fitted[1])
    return fitted[0]


@pytest.fixture
def make_training(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Training]:
    """LoRA adapters that are not zero, with half of their inputs dropped while training."""

    def make(**changes: object) -> Training:
        options = {"model__method": "lora", "model__lora__rank": 2, "model__lora__dropout": 0.5}
        config = make_config(**options | {"train__ema_decay": 0} | changes)
        networks = prepare_networks(load_base(config.model), config.model)
        with torch.no_grad():
            for number, (_, weight) in enumerate(networks.denoiser.trained()):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=seeded(9, number)))
        return set_up(config, networks, Accelerator(cpu=True), run=tmp_path)

    return make


def validation_of(part: Part, training: Training, start: StartDistribution, **options: int) -> Validation:
    texts = TokenIds(training.networks.pipeline, part.catalogue.captions)
    options = {"pictures": 100, "batch_size": 3} | options
    return fixed_validation(part, texts, start_distribution=start, **options)


def samples_of(validation: Validation, training: Training, start: StartDistribution) -> Iterator[tuple]:
    """(timestep, class, loss) of every sample, one by one, straight from the training loss."""
    alphas_cumprod, prediction_type = training_schedule(training.networks.pipeline)
    training.networks.denoiser.eval()
    for number in range(len(validation.batches)):
        batch = validation.batch(number)
        for i in range(len(batch["timesteps"])):
            with torch.no_grad():
                result = training_loss(
                    {key: value[i : i + 1] for key, value in batch.items()},
                    denoiser=training.networks.denoiser,
                    start_distribution=start,
                    alphas_cumprod=alphas_cumprod,
                    offset_from=start.offset_from,
                    prediction_type=prediction_type,
                )
            yield int(batch["timesteps"][i]), int(batch["class_ids"][i]), float(result.loss)
    training.networks.denoiser.train()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_it_is_the_weighted_mean_of_the_training_loss(make_training, part: Part) -> None:
    training, start = make_training(), start_of(part)
    validation = validation_of(part, training, start)
    values = validation.losses(training, start)
    samples = list(samples_of(validation, training, start))
    assert len(samples) == 2 * len(CLASSES)

    def weighted(chosen: list[tuple]) -> tuple[float, float, float]:
        inside = mean([loss for timestep, _, loss in chosen if timestep >= LOW])
        outside = mean([loss for timestep, _, loss in chosen if timestep < LOW])
        return 0.2 * inside + 0.8 * outside, inside, outside

    both, inside, outside = weighted(samples)
    expected = {"held_out_loss": both, "held_out_offset_range": inside, "held_out_elsewhere": outside}
    for class_id, name in enumerate(part.catalogue.class_names):
        expected[f"held_out_class/{name}"] = weighted([s for s in samples if s[1] == class_id])[0]
    assert values == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 3) for value in values.values()}) == 5


def test_it_does_not_depend_on_what_was_drawn_before_and_draws_nothing(make_training, part: Part) -> None:
    training, start = make_training(), start_of(part)
    validation = validation_of(part, training, start)
    torch.manual_seed(1)
    first = validation.losses(training, start)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    torch.rand(5)
    assert validation_of(part, training, start).losses(training, start) == first


def test_training_mode_is_put_back(make_training, part: Part) -> None:
    training, start = make_training(), start_of(part)
    modules = dict(training.networks.denoiser.named_modules())
    modules["unet.mid_block"].eval()
    before = {name: module.training for name, module in modules.items()}
    validation_of(part, training, start).losses(training, start)
    assert {name: module.training for name, module in modules.items()} == before
    assert set(before.values()) == {True, False}
    assert all(weight.requires_grad and weight.grad is None for weight in training.weights.values())


def test_averaged_weights_are_judged_and_trained_ones_put_back(make_training, part: Part) -> None:
    training, start = make_training(train__ema_decay=0.9), start_of(part)
    validation = validation_of(part, training, start)
    expected = validation.losses(training, start)
    with torch.no_grad():
        for weight in training.weights.values():
            weight.mul_(3)
    moved = {name: weight.detach().clone() for name, weight in training.weights.items()}
    assert validation.losses(training, start) == expected
    assert all(torch.equal(weight, moved[name]) for name, weight in training.weights.items())
    training.average = None
    assert validation.losses(training, start)["held_out_loss"] != expected["held_out_loss"]


@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_where_weights_are_sharded_a_whole_copy_is_judged(
    make_training, part: Part, ema_decay: float
) -> None:
    training, start = make_training(train__ema_decay=ema_decay), start_of(part)
    validation = validation_of(part, training, start)
    spare = copy.deepcopy(training.networks)
    spare.denoiser.requires_grad_(False).eval()
    with torch.no_grad():
        for weight in training.weights.values():
            weight.mul_(0.5)
    expected = validation.losses(training, start)
    weight = next(iter(training.weights.values()))
    moved = weight.detach().clone()
    training.spare = spare
    training.networks.denoiser.forward = lambda *_, **__: pytest.fail("the sharded networks were used")
    assert validation.losses(training, start) == expected
    assert torch.equal(weight, moved)
    assert training.networks.denoiser.training


@pytest.mark.parametrize("count", [2, 3, 50])
def test_processes_together_find_what_one_finds(make_training, part: Part, count: int) -> None:
    training, start = make_training(), start_of(part)
    validation = validation_of(part, training, start)
    alone = validation.losses(training, start)
    shares: list[torch.Tensor] = []
    calls: list[int] = []
    denoiser = training.networks.denoiser
    forward = denoiser.forward

    def counted(*args: object, **options: object) -> torch.Tensor:
        calls.append(1)
        return forward(*args, **options)

    denoiser.forward = counted

    def as_process(index: int, reduce: Callable) -> dict[str, float]:
        accelerator = SimpleNamespace(
            num_processes=count,
            process_index=index,
            device=torch.device("cpu"),
            autocast=nullcontext,
            reduce=reduce,
        )
        return validation.losses(replace(training, accelerator=accelerator), start)

    def keep(sums: torch.Tensor, *, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        shares.append(sums)
        return sums

    for index in range(count):
        as_process(index, keep)
    assert len(calls) == len(validation.batches)  # each by one of them
    total = torch.stack(shares).sum(0)
    for index in (0, count - 1):
        assert as_process(index, lambda sums, reduction: total) == pytest.approx(alone, rel=1e-5)


def test_without_an_offset_range_there_is_one_part(make_training, part: Part) -> None:
    training, start = make_training(), start_of(part, offset_from=1000)
    validation = validation_of(part, training, start)
    values = validation.losses(training, start)
    samples = list(samples_of(validation, training, start))
    assert len(samples) == len(CLASSES)
    assert "held_out_offset_range" not in values
    assert values["held_out_loss"] == values["held_out_elsewhere"]
    assert values["held_out_loss"] == pytest.approx(mean([loss for *_, loss in samples]), rel=1e-4)


def test_each_picture_is_shown_outside_and_inside_the_range(make_training, part: Part) -> None:
    training, start = make_training(), start_of(part)
    validation = validation_of(part, training, start)
    samples = [sample for batch in validation.batches for sample in batch]
    assert sorted(number for number, *_ in samples) == list(range(14))
    for inside in (False, True):
        rows = [row for _, row, timestep in samples if (timestep >= LOW) == inside]
        assert sorted(rows) == list(range(7))
    for batch in validation.batches:
        assert len(batch) <= 3
        assert len({int(BUCKET_IDS[row]) for _, row, _ in batch}) == 1


def test_pictures_are_taken_class_by_class(make_training, part: Part) -> None:
    training, start = make_training(), start_of(part)
    validation = validation_of(part, training, start, pictures=4)
    rows = {row for batch in validation.batches for _, row, _ in batch}
    assert rows == {0, 1, 5, 6}
    values = validation.losses(training, start)
    assert {"held_out_class/bag", "held_out_class/mug"} < set(values)
    one = validation_of(part, training, start, pictures=1).losses(training, start)
    assert [name for name in one if name.startswith("held_out_class/")] == ["held_out_class/bag"]


def test_another_batch_size_gives_the_same_value(make_training, part: Part) -> None:
    training, start = make_training(), start_of(part)
    values = [
        validation_of(part, training, start, batch_size=size).losses(training, start) for size in (1, 2, 7)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert values[2] == pytest.approx(values[0], rel=1e-4)


def test_a_sample_is_as_training_sees_one(make_training, part: Part) -> None:
    training, start = make_training(), start_of(part)
    part = replace(part, condition=lambda row: torch.full((3, 32, 32 * (1 + int(BUCKET_IDS[row]))), row / 9))
    validation = validation_of(part, training, start)
    noises = []
    for number, samples in enumerate(validation.batches):
        batch = validation.batch(number)
        assert torch.equal(batch["latents"], part.cache.means([row for _, row, _ in samples]))
        assert torch.equal(batch["class_ids"], part.catalogue.class_ids[[row for _, row, _ in samples]])
        assert not batch["dropped"].any()
        for i, (_, row, timestep) in enumerate(samples):
            assert int(batch["timesteps"][i]) == timestep
            assert torch.equal(batch["input_ids"][i], validation.texts[row]["input_ids"])
            assert torch.equal(batch["condition"][i], part.condition(row))
        noises += [noise.flatten()[:64] for noise in batch["noise"]]
        assert torch.equal(batch["noise"], validation.batch(number)["noise"])
    assert all(not torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 900), st.integers(1, 100), st.integers(0, 5))
def test_timesteps_are_spread_one_to_each_part(count: int, low: int, width: int, seed: int) -> None:
    drawn = spread(count, low, low + width, torch.Generator().manual_seed(seed))
    assert drawn.dtype == torch.int64
    for i, timestep in enumerate(sorted(drawn.tolist())):
        assert int(low + width * i / count - 1e-3) <= timestep <= low + width * (i + 1) / count + 1e-3
        assert low <= timestep < low + width


def test_timesteps_are_in_no_order(generator: torch.Generator) -> None:
    drawn = spread(100, 0, 1000, generator)
    assert not torch.equal(drawn, drawn.sort().values)
    assert abs(float(torch.corrcoef(torch.stack([drawn.double(), torch.arange(100).double()]))[0, 1])) < 0.4

import numpy as np
import pytest
import torch
from onbrand.train.samples import TimestepLaw, TrainingSamples, seeded
from torch.utils.data import DataLoader, Subset


class FakeCache:
    """Latents that say which picture they are."""

    def mean(self, index: int) -> torch.Tensor:
        return torch.full((1, 2, 2), float(index))

    def stds(self, indices: list[int]) -> torch.Tensor:
        return torch.full((len(indices), 1, 2, 2), 0.5)


def make_samples(*, total: int = 40, seed: int = 0, **options: object) -> TrainingSamples:
    defaults = {"timesteps": TimestepLaw(1000, 941), "caption_dropout": 0.25}
    return TrainingSamples(
        FakeCache(),
        torch.arange(10) % 3,
        torch.arange(10)[:, None] + 100,
        no_caption_ids=torch.tensor([0]),
        total=total,
        seed=seed,
        **{**defaults, **options},
    )


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own() -> None:
    samples = make_samples()
    epochs = [[int(samples[e * 10 + i]["latents"][0, 0, 0]) for i in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_draws_do_not_depend_on_who_asks_or_when() -> None:
    one, other = make_samples(), make_samples()
    late = other[33]
    for i in range(33):
        one[i]
    for key, value in one[33].items():
        assert torch.equal(value, late[key]), key


def test_a_picture_seen_twice_gets_two_noises() -> None:
    samples = make_samples()
    rows = {}
    for i in range(20):
        rows.setdefault(int(samples[i]["latents"][0, 0, 0]), []).append(samples[i]["noise"])
    assert all(not torch.equal(first, second) for first, second in rows.values())


def test_two_processes_see_what_one_process_sees() -> None:
    """Batches dealt out in turn, as accelerate deals them, make up the same global batches."""
    samples = make_samples()
    whole = [batch["noise"] for batch in DataLoader(samples, batch_size=8)]
    dealt = [batch["noise"] for batch in DataLoader(samples, batch_size=4)]
    for i, batch in enumerate(whole):
        assert torch.equal(batch, torch.cat(dealt[2 * i : 2 * i + 2]))


def test_a_resumed_run_continues_in_the_middle() -> None:
    samples = make_samples()
    resumed = next(iter(DataLoader(Subset(samples, range(16, 40)), batch_size=8)))
    whole = list(DataLoader(samples, batch_size=8))[2]
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_workers_change_nothing() -> None:
    samples = make_samples(total=16)
    alone = [batch["noise"] for batch in DataLoader(samples, batch_size=4)]
    helped = [batch["noise"] for batch in DataLoader(samples, batch_size=4, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_another_seed_draws_something_else() -> None:
    assert not torch.equal(make_samples(seed=0)[0]["noise"], make_samples(seed=1)[0]["noise"])


def test_seeds_that_look_alike_are_unrelated() -> None:
    draws = [
        torch.randn(8, generator=seeded(*key))
        for key in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 12), (0, 1, 3)]
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_captions_are_dropped_at_the_stated_rate_and_keep_their_class() -> None:
    samples = make_samples(total=2000)
    items = [samples[i] for i in range(2000)]
    dropped = [item for item in items if int(item["input_ids"][0]) == 0]
    assert 0.21 < len(dropped) / 2000 < 0.29
    assert all(int(item["class_ids"]) == int(item["latents"][0, 0, 0]) % 3 for item in dropped)


def test_posterior_sampling_adds_the_stated_spread() -> None:
    spread = [float((make_samples(sample_posterior=True)[i]["latents"] - make_samples()[i]["latents"]).std())
              for i in range(40)]  # fmt: skip
    assert 0.3 < np.mean(spread) < 0.6


@pytest.mark.parametrize(("emphasis", "share"), [(None, 0.059), (0.15, 0.15), (0.5, 0.5)])
def test_emphasis_sets_the_share_of_the_offset_range(emphasis: float | None, share: float) -> None:
    law = TimestepLaw(1000, 941, emphasis)
    generator = torch.Generator().manual_seed(0)
    drawn = np.array([law.draw(generator) for _ in range(6000)])
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert abs((drawn >= 941).mean() - share) < 0.02
    inside = drawn[drawn >= 941]
    assert abs(inside.mean() - 970) < 3


def test_emphasis_is_nothing_without_an_offset_range() -> None:
    law = TimestepLaw(1000, 1000, 0.5)
    drawn = [law.draw(seeded(0, i)) for i in range(500)]
    assert 400 < np.mean(drawn) < 600

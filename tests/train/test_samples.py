import numpy as np
import pytest
import torch
from onbrand.train.order import seeded, training_order
from onbrand.train.samples import TimestepLaw, TrainingSamples
from torch.utils.data import DataLoader, Subset

PICTURES = 10


class FakeCache:
    """Latents that say which picture they are."""

    def mean(self, index: int) -> torch.Tensor:
        return torch.full((1, 2, 2), float(index))

    def stds(self, indices: list[int]) -> torch.Tensor:
        return torch.full((len(indices), 1, 2, 2), 0.5)


class FakeTexts:
    """Token ids that say which caption they are; 0 is the empty one."""

    def __getitem__(self, row: int | None) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[0 if row is None else row + 100]])}


def make_samples(*, total: int = 40, seed: int = 0, per_step: int = 4, **options: object) -> TrainingSamples:
    defaults = {"timesteps": TimestepLaw(1000, 941), "caption_dropout": 0.25}
    class_ids = torch.arange(PICTURES) % 3
    order = training_order(
        class_ids,
        torch.zeros(PICTURES, dtype=torch.long),
        draws=options.pop("draws", None),
        seed=seed,
        steps=total // per_step,
        per_step=per_step,
    )
    return TrainingSamples(FakeCache(), class_ids, FakeTexts(), order=order, seed=seed, **defaults | options)


def row_of(item: dict[str, torch.Tensor]) -> int:
    return int(item["latents"][0, 0, 0])


def test_samples_come_in_the_given_order() -> None:
    samples = make_samples()
    assert len(samples) == 40
    assert [row_of(samples[i]) for i in range(40)] == samples.order[:, 2].tolist()


def test_an_item_says_what_the_step_reads() -> None:
    item = make_samples(caption_dropout=0.0)[7]
    row = row_of(item)
    assert set(item) == {"latents", "noise", "timesteps", "class_ids", "dropped", "input_ids"}
    assert item["noise"].shape == item["latents"].shape
    assert (item["timesteps"].dtype, item["dropped"].dtype) == (torch.long, torch.bool)
    assert int(item["class_ids"]) == row % 3
    assert item["input_ids"].item() == row + 100


def test_a_condition_is_the_pictures_own() -> None:
    samples = make_samples(condition=lambda row: torch.full((3, 8, 8), row / 10))
    for i in range(12):
        assert samples[i]["condition"][0, 0, 0] == pytest.approx(row_of(samples[i]) / 10)


def test_draws_do_not_depend_on_who_asks_or_when() -> None:
    one, other = make_samples(), make_samples()
    late = other[33]
    torch.randn(100)
    for i in range(33):
        one[i]
    for key, value in one[33].items():
        assert torch.equal(value, late[key]), key


def test_draws_belong_to_epoch_and_position_not_to_the_place_in_the_run() -> None:
    """A sample that buckets or another batch size move to another place keeps its draws."""
    samples = make_samples()
    moved = make_samples()
    moved.order = moved.order[torch.arange(39, -1, -1)]
    for key, value in samples[5].items():
        assert torch.equal(value, moved[34][key]), key


def test_a_picture_seen_twice_gets_two_noises() -> None:
    samples = make_samples()
    rows = {}
    for i in range(20):
        rows.setdefault(row_of(samples[i]), []).append(samples[i]["noise"])
    assert len(rows) == PICTURES
    assert all(not torch.equal(first, second) for first, second in rows.values())


def test_a_picture_drawn_twice_in_an_epoch_gets_two_noises() -> None:
    samples = make_samples(total=8, draws=[1, 1, 8])  # class 2 has three pictures
    noises = {}
    for i in range(8):
        noises.setdefault(row_of(samples[i]), []).append(samples[i]["noise"])
    again = [noise for noise in noises.values() if len(noise) > 1]
    assert again
    assert all(not torch.equal(noise[0], noise[1]) for noise in again)


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
    one, other = make_samples(seed=0), make_samples(seed=1)
    assert not torch.equal(one[0]["noise"], other[0]["noise"])
    assert not torch.equal(one.order, other.order)


def test_captions_are_dropped_at_the_stated_rate_and_keep_their_class() -> None:
    samples = make_samples(total=2000)
    items = [samples[i] for i in range(2000)]
    dropped = [item for item in items if item["dropped"]]
    assert 0.21 < len(dropped) / 2000 < 0.29
    assert all(item["input_ids"].item() == 0 for item in dropped)
    assert all(int(item["class_ids"]) == row_of(item) % 3 for item in dropped)
    kept = [item for item in items if not item["dropped"]]
    assert all(item["input_ids"].item() == row_of(item) + 100 for item in kept)


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0), (1.0, 1)])
def test_captions_are_dropped_never_or_always_if_asked_to(rate: float, share: int) -> None:
    samples = make_samples(total=200, caption_dropout=rate)
    assert sum(bool(samples[i]["dropped"]) for i in range(200)) == 200 * share


def test_posterior_sampling_adds_the_stated_spread() -> None:
    one, other = make_samples(total=400, sample_posterior=True), make_samples(total=400)
    added = torch.stack([one[i]["latents"] - other[i]["latents"] for i in range(400)])
    assert abs(float(added.std()) - 0.5) < 0.03
    assert abs(float(added.mean())) < 0.05


def test_posterior_sampling_leaves_all_other_draws_as_they_are() -> None:
    one, other = make_samples(sample_posterior=True), make_samples()
    for key in ("noise", "timesteps", "dropped"):
        assert all(torch.equal(one[i][key], other[i][key]) for i in range(40)), key


@pytest.mark.parametrize(("emphasis", "share"), [(None, 0.059), (0.15, 0.15), (0.5, 0.5), (0.0, 0.0)])
def test_emphasis_sets_the_share_of_the_offset_range(emphasis: float | None, share: float) -> None:
    law = TimestepLaw(1000, 941, emphasis)
    generator = torch.Generator().manual_seed(0)
    drawn = np.array([law.draw(generator) for _ in range(6000)])
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert abs((drawn >= 941).mean() - share) < 0.02
    for low, high in ((0, 941), (941, 1000)):
        inside = drawn[(drawn >= low) & (drawn < high)]
        assert not len(inside) or abs(inside.mean() - (low + high) / 2) < 0.02 * high


def test_emphasis_is_nothing_without_an_offset_range() -> None:
    law = TimestepLaw(1000, 1000, 0.5)
    drawn = [law.draw(seeded(0, i)) for i in range(500)]
    assert 400 < np.mean(drawn) < 600


def test_a_dropped_caption_keeps_the_text_of_its_start() -> None:
    text = torch.arange(PICTURES * 3.0).view(PICTURES, 3)
    plain, told = make_samples(), make_samples(text_embeds=text)
    assert any(bool(told[i]["dropped"]) for i in range(40))
    for i in range(40):
        item = told[i]
        assert torch.equal(item.pop("text_embeds"), text[row_of(item)])
        for name, value in plain[i].items():
            assert torch.equal(item[name], value), name

"""The order of a run: whole batches of one size, classes in their shares, nothing left out."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.train.order import class_draws, epoch_rows, seeded, training_order

BUCKETS = st.lists(st.integers(0, 2), min_size=1, max_size=25)


def order_of(bucket_ids: list[int], *, steps: int, per_step: int, seed: int = 0, **options: object):
    count = len(bucket_ids)
    options = {"class_ids": torch.arange(count) % 3, "draws": None} | options
    return training_order(
        bucket_ids=torch.tensor(bucket_ids), seed=seed, steps=steps, per_step=per_step, **options
    )


def streamed(bucket_ids: list[int], *, steps: int, per_step: int, seed: int = 0):
    """Sample after sample into its bucket's queue; a queue that is long enough is a batch."""
    class_ids, queues, due, epoch = torch.arange(len(bucket_ids)) % 3, {}, [], 0
    while True:
        rows = epoch_rows(class_ids, None, seed=seed, epoch=epoch).tolist()
        for position, row in enumerate(rows):
            queue = queues.setdefault(bucket_ids[row], [])
            queue.append([epoch, position, row])
            if len(queue) == per_step:
                due.append(queue.copy())
                queue.clear()
                if len(due) == steps:
                    return [sample for batch in due for sample in batch], queues
        epoch += 1


@settings(max_examples=60, deadline=None)
@given(BUCKETS, st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_it_is_what_queues_that_fill_sample_by_sample_give(bucket_ids, steps, per_step, seed) -> None:
    expected, _ = streamed(bucket_ids, steps=steps, per_step=per_step, seed=seed)
    assert order_of(bucket_ids, steps=steps, per_step=per_step, seed=seed).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(BUCKETS, st.integers(1, 12), st.integers(1, 9))
def test_every_global_batch_is_of_one_bucket(bucket_ids, steps, per_step) -> None:
    order = order_of(bucket_ids, steps=steps, per_step=per_step)
    assert order.shape == (steps * per_step, 3)
    assert order.dtype == torch.int64
    of_batches = torch.tensor(bucket_ids)[order[:, 2]].view(steps, per_step)
    assert (of_batches == of_batches[:, :1]).all()


@settings(max_examples=40, deadline=None)
@given(BUCKETS, st.integers(1, 12), st.integers(1, 9))
def test_nothing_is_dropped(bucket_ids, steps, per_step) -> None:
    """What is due and what still waits are the samples up to the last one due, each once."""
    order = order_of(bucket_ids, steps=steps, per_step=per_step).tolist()
    _, waiting = streamed(bucket_ids, steps=steps, per_step=per_step)
    both = sorted(sample[:2] for sample in [*order, *(s for queue in waiting.values() for s in queue)])
    count = len(bucket_ids)
    assert both == [[i // count, i % count] for i in range(len(both))]
    assert all(len(queue) < per_step for queue in waiting.values())


@settings(max_examples=40, deadline=None)
@given(BUCKETS, st.integers(1, 30), st.integers(1, 9))
def test_pictures_of_a_bucket_are_shown_equally_often_up_to_one(bucket_ids, steps, per_step) -> None:
    shown = Counter(order_of(bucket_ids, steps=steps, per_step=per_step)[:, 2].tolist())
    for bucket in set(bucket_ids):
        counts = [shown[row] for row, own in enumerate(bucket_ids) if own == bucket]
        assert max(counts) - min(counts) <= 1


def test_a_rare_bucket_is_shown_as_often_as_a_common_one() -> None:
    """Three pictures of 43 in batches of 8: a batch of theirs in every 2.7 epochs, but all of them shown."""
    bucket_ids = [0] * 40 + [1] * 3
    shown = Counter(order_of(bucket_ids, steps=430, per_step=8)[:, 2].tolist())
    rates = [sum(shown[row] for row in rows) / len(rows) for rows in (range(40), range(40, 43))]
    assert 78 <= rates[0] <= 82
    assert 78 <= rates[1] <= 82


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    bucket_ids = [0, 1, 0, 0, 1, 2, 0]
    short, long = (order_of(bucket_ids, steps=steps, per_step=4) for steps in (5, 50))
    assert torch.equal(short, long[:20])
    assert torch.equal(short, order_of(bucket_ids, steps=5, per_step=4))


def test_every_number_of_processes_reads_the_same_epochs() -> None:
    """With one bucket the order is the epochs' own, whatever the global batch."""
    small, large = order_of([0] * 10, steps=24, per_step=2), order_of([0] * 10, steps=6, per_step=8)
    assert torch.equal(small, large)
    epochs = [epoch_rows(torch.arange(10) % 3, None, seed=0, epoch=epoch) for epoch in range(5)]
    assert torch.equal(small[:, 2], torch.cat(epochs)[:48])
    assert small[:, :2].tolist() == [[i // 10, i % 10] for i in range(48)]


def test_with_buckets_a_sample_keeps_its_epoch_and_position() -> None:
    bucket_ids = [0, 1, 0, 0, 1, 1, 0]
    rows = [
        {(epoch, position): row for epoch, position, row in order_of(bucket_ids, **sizes).tolist()}
        for sizes in ({"steps": 40, "per_step": 2}, {"steps": 10, "per_step": 8})
    ]
    common = rows[0].keys() & rows[1].keys()
    assert len(common) > 60
    assert all(rows[0][key] == rows[1][key] for key in common)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    ids = torch.zeros(30, dtype=torch.long)
    orders = [epoch_rows(ids, None, seed=s, epoch=e).tolist() for s, e in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=3, max_size=30), st.lists(st.integers(1, 40), min_size=3, max_size=3)
)
def test_a_class_shows_all_its_pictures_before_any_comes_again(ids, draws) -> None:
    class_ids = torch.tensor([0, 1, 2, *ids])
    rows = epoch_rows(class_ids, draws, seed=0, epoch=0)
    assert class_ids[rows].bincount(minlength=3).tolist() == draws
    for class_id in range(3):
        shown = Counter(rows[class_ids[rows] == class_id].tolist())
        counts = [shown[int(row)] for row in (class_ids == class_id).nonzero()]
        assert max(counts) - min(counts) <= 1


def test_drawn_classes_are_mixed() -> None:
    class_ids = torch.arange(60) % 2
    drawn = class_ids[epoch_rows(class_ids, [30, 30], seed=0, epoch=0)]
    assert 15 < int((drawn[1:] != drawn[:-1]).sum()) < 45


def draws_of(counts: list[int], sampling: str, **weights: float) -> list[int] | None:
    class_ids = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    return class_draws(class_ids, list("abc")[: len(counts)], sampling=sampling, weights=weights)


@pytest.mark.parametrize(
    ("counts", "sampling", "weights", "expected"),
    [
        ([6, 3, 1], "natural", {}, None),
        ([8, 3, 1], "balanced", {}, [4, 4, 4]),
        ([8, 2, 1], "balanced", {}, [4, 4, 3]),  # the earlier of equal remainders
        ([6, 2, 2], "natural", {"b": 2}, [5, 3, 2]),  # 5, 3.33 and 1.67: the largest remainder gains
        ([6, 3, 1], "natural", {"a": 0.5}, [4, 4, 2]),  # 30, 30 and 10 of 70: 4.29, 4.29, 1.43
        ([8, 3, 1], "balanced", {"c": 2}, [3, 3, 6]),
    ],
)
def test_class_draws(counts, sampling, weights, expected) -> None:
    assert draws_of(counts, sampling, **weights) == expected


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(5, 60), min_size=3, max_size=3),
    st.sampled_from(["natural", "balanced"]),
    st.lists(st.floats(0.5, 2), min_size=3, max_size=3),
)
def test_draws_add_up_and_are_within_one_of_their_share(counts, sampling, weights) -> None:
    draws = draws_of(counts, sampling, **dict(zip("abc", weights, strict=True)))
    shares = [w * (n if sampling == "natural" else 1) for n, w in zip(counts, weights, strict=True)]
    assert sum(draws) == sum(counts)
    for drawn, share in zip(draws, shares, strict=True):
        assert abs(drawn - share / sum(shares) * sum(counts)) < 1 + 1e-9


def test_weights_of_a_class_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"class_weights must name classes of \['a', 'b'\], got \['mug'\]"):
        draws_of([3, 2], "natural", mug=2.0)


def test_a_class_left_without_a_draw() -> None:
    with pytest.raises(ValueError, match="must leave every class a draw an epoch, got none for 'b'"):
        draws_of([9, 3], "natural", b=0.01)


def test_balanced_classes_share_a_run() -> None:
    class_ids = torch.tensor([0] * 20 + [1] * 4)
    order = order_of([0] * 24, steps=60, per_step=4, class_ids=class_ids, draws=[12, 12])
    assert class_ids[order[:, 2]].bincount().tolist() == [120, 120]
    keys = {tuple(sample) for sample in order[:, :2].tolist()}
    assert len(keys) == len(order)  # a picture that comes twice in an epoch has two positions


def test_keys_that_look_alike_are_unrelated() -> None:
    keys = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 12), (0, 1, 3)]
    draws = [torch.randn(8, generator=seeded(*key)) for key in keys]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])

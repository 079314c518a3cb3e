"""Rows on disk: found by key, read as written, wherever the reader is."""

import pickle

import pytest
import torch
from onbrand.data.shards import ShardRows, read_entries, recipe_folder, write_shard, write_shards
from torch.utils.data import DataLoader, Dataset


def rows_of(*numbers: int, dtype: torch.dtype = torch.float16) -> dict:
    return {
        f"key{n}": {"hidden": torch.full((2, 3), n, dtype=dtype), "pooled": torch.full((3,), -n, dtype=dtype)}
        for n in numbers
    }


def reader(folder, *keys: str) -> ShardRows:
    entries = read_entries(folder)
    return ShardRows(entries[key] for key in keys)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_rows_come_back_as_written(tmp_path, dtype):
    write_shard(tmp_path, rows_of(1, 2, dtype=dtype))
    write_shard(tmp_path, rows_of(3, dtype=dtype))
    rows = reader(tmp_path, "key3", "key1")
    assert len(rows) == 2
    assert rows.gather("hidden", [0, 1, 0])[:, 0, 0].tolist() == [3, 1, 3]
    assert rows.gather("pooled", torch.tensor([1])).tolist() == [[-1, -1, -1]]
    assert rows.gather("hidden", [0]).dtype == dtype


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert read_entries(tmp_path / "none") == {}


def test_another_recipe_is_another_folder(tmp_path):
    assert recipe_folder(tmp_path, "one") == recipe_folder(tmp_path, "one")
    assert recipe_folder(tmp_path, "one") != recipe_folder(tmp_path, "two")


def test_shards_are_filled_and_what_came_before_an_error_is_kept(tmp_path):
    def batches():
        for start in (0, 2, 4):
            yield rows_of(start, start + 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, batches(), shard_size=3)
    assert sorted(read_entries(tmp_path)) == [f"key{n}" for n in range(6)]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_read_is_a_copy(tmp_path):
    write_shard(tmp_path, rows_of(7))
    rows = reader(tmp_path, "key7")
    rows.gather("pooled", [0]).zero_()
    assert rows.gather("pooled", [0]).tolist() == [[-7] * 3]


def test_a_pickled_reader_takes_no_rows_along(tmp_path):
    write_shard(tmp_path, {str(n): {"mean": torch.randn(1000)} for n in range(50)})
    rows = reader(tmp_path, *map(str, range(50)))
    unread = pickle.dumps(rows)
    values = rows.gather("mean", range(50))
    read = pickle.dumps(rows)
    assert len(read) == len(unread) < values.nbytes / 20
    assert torch.equal(pickle.loads(read).gather("mean", range(50)), values)


class Numbers(Dataset):
    def __init__(self, rows: ShardRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows.gather("hidden", [index])[0]


def test_workers_read_what_the_parent_has_open(tmp_path):
    write_shard(tmp_path, rows_of(*range(6)))
    rows = reader(tmp_path, *(f"key{n}" for n in range(6)))
    alone = rows.gather("hidden", range(6))
    [batch] = DataLoader(Numbers(rows), batch_size=6, num_workers=1)
    assert torch.equal(batch, alone)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="a shard must hold a row, got none"):
        write_shard(tmp_path, {})
    write_shard(tmp_path, rows_of(1))
    write_shard(tmp_path, {"long": {"hidden": torch.zeros(9)}})
    rows = reader(tmp_path, "key1", "long")
    with pytest.raises(
        ValueError, match=r"rows read together must be of one shape, got \[\(2, 3\), \(9,\)\]"
    ):
        rows.gather("hidden", [0, 1])
    with pytest.raises(ValueError, match=r"tensors of .* must be one of \['hidden', 'pooled'\], got 'mean'"):
        rows.gather("mean", [0])
    [shard, _] = sorted(tmp_path.iterdir())
    shard.write_bytes(b"\x10")
    with pytest.raises(ValueError, match=rf"cached shard .*{shard.name} must be readable, got .*; delete it"):
        read_entries(tmp_path)

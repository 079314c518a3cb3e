"""Latents are found by content: encoded once, never stale, equal to a direct encode."""

import hashlib
import json
import pickle
import threading

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from onbrand.data import Buckets, Catalogue, ImageTransform, Picture, cache_latents
from onbrand.data.latents import encode_latents, weights_hash
from onbrand.data.shards import read_entries
from PIL import Image
from safetensors.torch import save_file

TRANSFORM = ImageTransform(32, 32)


def tiny_vae(seed: int = 0, **config) -> AutoencoderKL:
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        **config,
    )
    return vae.eval()


@pytest.fixture
def vae(monkeypatch) -> AutoencoderKL:
    return counted(tiny_vae(), monkeypatch)


def counted(vae: AutoencoderKL, monkeypatch, *, fail_after: int | None = None) -> AutoencoderKL:
    """The VAE with `.encoded`, the number of pictures it was shown; fails beyond fail_after of them."""
    encode, vae.encoded = type(vae).encode, 0

    def counting(pixels):
        if fail_after is not None and vae.encoded >= fail_after:
            raise KeyboardInterrupt
        vae.encoded += len(pixels)
        return encode(vae, pixels)

    monkeypatch.setattr(vae, "encode", counting)
    return vae


def noise_image(seed: int, height: int = 32, width: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photos(*seeds: int) -> Catalogue:
    return Catalogue(
        [Picture(noise_image(seed), "text", row=i, origin=f"{i}.png") for i, seed in enumerate(seeds)]
    )


def cache(catalogue, vae, tmp_path, transform=TRANSFORM, **settings):
    return cache_latents(catalogue, vae, transform, cache_dir=tmp_path, progress=False, **settings)


def test_cached_latents_equal_a_direct_encode(tmp_path, vae):
    catalogue = photos(*range(5))
    latents = cache(catalogue, vae, tmp_path, batch_size=2)
    assert len(latents) == 5
    assert latents.latent_shape == (4, 16, 16)
    for i in range(5):
        pixels = TRANSFORM(catalogue.image(i))[None]
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
        scale = vae.config.scaling_factor
        torch.testing.assert_close(latents.mean(i), posterior.mean[0] * scale, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(latents.stds([i]), posterior.std * scale, atol=1e-5, rtol=1e-5)
    assert latents.means([3, 0, 3]).shape == (3, 4, 16, 16)
    assert torch.equal(latents.means(torch.tensor([3, 0]))[1], latents.mean(0))
    assert latents.means([]).shape == (0, 4, 16, 16)
    assert latents.means([0]).dtype == torch.float32
    assert not latents.means([0]).requires_grad


def test_shift_and_scale():
    plain, shifted = tiny_vae(scaling_factor=1.0), tiny_vae(scaling_factor=0.5, shift_factor=0.25)
    pixels = TRANSFORM(noise_image(0))[None]
    mean, std = encode_latents(pixels, plain)
    scaled_mean, scaled_std = encode_latents(pixels, shifted)
    torch.testing.assert_close(scaled_mean, (mean - 0.25) * 0.5)
    torch.testing.assert_close(scaled_std, std * 0.5)


def test_unchanged_pictures_are_not_encoded_again(tmp_path, vae):
    first = cache(photos(0, 1, 2), vae, tmp_path)
    second = cache(photos(2, 0, 1, 3), vae, tmp_path)
    assert vae.encoded == 4
    assert torch.equal(second.means([1, 2, 0]), first.means([0, 1, 2]))
    assert cache(photos(0, 1, 2), vae, tmp_path).content_hash == first.content_hash != second.content_hash


def test_equal_pictures_are_encoded_once(tmp_path, vae):
    latents = cache(photos(7, 8, 7, 7), vae, tmp_path)
    assert vae.encoded == 2
    assert torch.equal(latents.mean(0), latents.mean(3))
    assert not torch.equal(latents.mean(0), latents.mean(1))


def test_an_edited_file_is_encoded_again(tmp_path, vae):
    file = tmp_path / "mug.png"
    catalogue = Catalogue([Picture(file, "text")])
    noise_image(0).save(file)
    before = cache(catalogue, vae, tmp_path).mean(0)
    noise_image(1).save(file)
    after = cache(catalogue, vae, tmp_path).mean(0)
    assert vae.encoded == 2
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, encode_latents(TRANSFORM(noise_image(1))[None], vae)[0][0])


@pytest.mark.parametrize(
    "transform",
    [ImageTransform(16, 16), ImageTransform(32, 32, fit="pad"), ImageTransform(32, 32, backdrop="red")],
)
def test_another_transform_is_encoded_again(tmp_path, vae, transform):
    cache(photos(0, 1), vae, tmp_path)
    latents = cache(photos(0, 1), vae, tmp_path, transform)
    assert vae.encoded == 4
    assert latents.mean(0).shape == latents.latent_shape
    assert latents.content_hash != cache(photos(0, 1), vae, tmp_path).content_hash


def test_another_backdrop_under_transparency_is_encoded_again(tmp_path, vae):
    file = tmp_path / "clear.png"
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(file)
    white, black = (
        cache(Catalogue([Picture(file, "text", backdrop=colour)]), vae, tmp_path)
        for colour in ("white", "black")
    )
    assert vae.encoded == 2
    assert not torch.equal(white.mean(0), black.mean(0))


def test_another_vae_is_encoded_again(tmp_path, vae, monkeypatch):
    first = cache(photos(0), vae, tmp_path)
    nudged = counted(tiny_vae(), monkeypatch)
    with torch.no_grad():
        nudged.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    rescaled = counted(tiny_vae(scaling_factor=0.5), monkeypatch)
    for other in (nudged, rescaled):
        assert not torch.equal(cache(photos(0), other, tmp_path).mean(0), first.mean(0))
        assert other.encoded == 1
    same = counted(tiny_vae(), monkeypatch)
    assert torch.equal(cache(photos(0), same, tmp_path).mean(0), first.mean(0))
    assert same.encoded == 0


def test_weights_hash_survives_saving(tmp_path):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path)
    assert weights_hash(AutoencoderKL.from_pretrained(tmp_path)) == weights_hash(vae)
    assert weights_hash(tiny_vae(1)) != weights_hash(vae)


def test_an_interrupted_run_keeps_what_it_encoded(tmp_path, monkeypatch):
    catalogue = photos(*range(7))
    with pytest.raises(KeyboardInterrupt):
        cache(catalogue, counted(tiny_vae(), monkeypatch, fail_after=5), tmp_path, batch_size=1, shard_size=2)
    resumed = counted(tiny_vae(), monkeypatch)
    latents = cache(catalogue, resumed, tmp_path, batch_size=1, shard_size=2)
    assert resumed.encoded == 2
    whole = cache(catalogue, tiny_vae(), tmp_path / "whole", batch_size=1)
    assert torch.equal(latents.means(range(7)), whole.means(range(7)))
    assert torch.equal(latents.stds(range(7)), whole.stds(range(7)))
    assert not list(tmp_path.rglob("*.partial"))


def test_batch_size_does_not_matter(tmp_path):
    catalogue = photos(*range(5))
    one, five = (cache(catalogue, tiny_vae(), tmp_path / str(n), batch_size=n) for n in (1, 5))
    torch.testing.assert_close(one.means(range(5)), five.means(range(5)), atol=1e-5, rtol=1e-5)


def test_latents_that_are_not_finite_name_the_picture(tmp_path, monkeypatch):
    vae = tiny_vae()
    encode = type(vae).encode

    def overflow(pixels):
        result = encode(vae, pixels)
        result.latent_dist.mean[1] = float("inf")
        return result

    monkeypatch.setattr(vae, "encode", overflow)
    with pytest.raises(
        ValueError, match=r"latents of picture 1\.png must be finite, got NaN or inf \(torch.float32 VAE"
    ):
        cache(photos(0, 1, 2), vae, tmp_path)


def test_a_damaged_shard_is_named(tmp_path, vae):
    cache(photos(0), vae, tmp_path)
    [shard] = tmp_path.rglob("*.safetensors")
    shard.write_bytes(b"\x10")
    with pytest.raises(ValueError, match=rf"cached shard .*{shard.name} must be readable, got .*; delete it"):
        cache(photos(0), vae, tmp_path)
    shard.unlink()
    cache(photos(0), vae, tmp_path)
    assert vae.encoded == 2


def test_an_empty_part_needs_no_vae_call(tmp_path, vae):
    empty = cache(photos(0).subset([]), vae, tmp_path)
    assert (len(empty), vae.encoded, empty.latent_shape) == (0, 0, (4, 16, 16))


def test_changing_what_was_read_does_not_change_the_cache(tmp_path, vae):
    latents = cache(photos(0), vae, tmp_path)
    before = latents.mean(0)
    latents.mean(0).zero_()
    assert torch.equal(latents.mean(0), before)


def test_shards_written_by_earlier_versions_are_found(tmp_path, vae):
    catalogue = photos(0, 1)
    recipe = f"{weights_hash(vae)} {json.dumps(TRANSFORM.to_dict(), sort_keys=True)}"
    folder = tmp_path / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    folder.mkdir()
    keys = [catalogue.fingerprint(i) for i in range(2)]
    mean, std = torch.randn(2, 4, 16, 16), torch.rand(2, 4, 16, 16)
    header = {"pictures": json.dumps(keys)}
    save_file({"mean": mean, "std": std}, folder / "shard-0123456789ab.safetensors", metadata=header)
    latents = cache(catalogue, vae, tmp_path)
    assert vae.encoded == 0
    assert torch.equal(latents.means([0, 1]), mean)
    assert torch.equal(latents.stds([0, 1]), std)
    known = hashlib.sha256(" ".join([folder.name, *keys]).encode()).hexdigest()
    assert latents.content_hash == known


def test_a_cache_that_was_read_can_be_sent_to_a_worker(tmp_path, vae):
    latents = cache(photos(0, 1), vae, tmp_path)
    means = latents.means([0, 1])
    sent = pickle.loads(pickle.dumps(latents))
    assert torch.equal(sent.means([0, 1]), means)
    assert sent.content_hash == latents.content_hash


@pytest.mark.parametrize(("size", "batch"), [(64, 16), (512, 8), (1024, 2), (2048, 1)])
def test_fewer_large_pictures_are_encoded_at_a_time(tmp_path, monkeypatch, size, batch):
    seen = []

    def flat(pixels, vae):
        seen.append(len(pixels))
        return torch.zeros(len(pixels), 4, 1, 1), torch.ones(len(pixels), 4, 1, 1)

    monkeypatch.setattr("onbrand.data.latents.encode_latents", flat)
    colours = [Picture(Image.new("RGB", (8, 8), (i, 0, 0)), "text") for i in range(batch + 1)]
    cache(Catalogue(colours), tiny_vae(), tmp_path, ImageTransform(size, size))
    assert seen == [batch, 1]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_encode_each_picture_once_and_get_the_same(tmp_path, monkeypatch, together, count):
    catalogue = photos(*range(7), 3)
    vaes = [counted(tiny_vae(), monkeypatch) for _ in range(count)]

    def work(processes):
        own = vaes[processes.index]
        return cache(catalogue, own, tmp_path, batch_size=1, shard_size=2, processes=processes)

    caches = together(count, work)
    assert sum(vae.encoded for vae in vaes) == 7
    assert max(vae.encoded for vae in vaes) - min(vae.encoded for vae in vaes) <= 1
    alone = cache(catalogue, tiny_vae(), tmp_path / "alone", batch_size=1)
    for latents in caches:
        assert latents.content_hash == alone.content_hash
        assert torch.equal(latents.means(range(8)), alone.means(range(8)))
        assert torch.equal(latents.stds(range(8)), alone.stds(range(8)))
    together(count, work)
    assert sum(vae.encoded for vae in vaes) == 7


def test_one_process_goes_on_where_several_were(tmp_path, vae, monkeypatch, together):
    vaes = [counted(tiny_vae(), monkeypatch) for _ in range(2)]
    together(2, lambda processes: cache(photos(0, 1), vaes[processes.index], tmp_path, processes=processes))
    cache(photos(*range(4)), vae, tmp_path)
    assert vae.encoded == 2


def test_a_picture_that_fails_in_one_process_ends_them_all(tmp_path, vae, together):
    pictures = [*photos(0, 1, 2).pictures, Picture(tmp_path / "gone.png", "text", origin="gone.png")]
    errors = together(2, lambda processes: cache(Catalogue(pictures), vae, tmp_path, processes=processes))
    assert [str(error) for error in errors] == ["picture gone.png must be readable, got no such file"] * 2


def test_processes_agree_on_what_is_missing(tmp_path, monkeypatch, together):
    """One looks before another run writes picture 0, one after it."""
    vae, here = tiny_vae(), threading.local()
    cache(photos(0), vae, tmp_path)

    def look(folder):
        looked, here.looked = here.looked, True
        return read_entries(folder) if looked else {}

    monkeypatch.setattr("onbrand.data.latents.read_entries", look)

    def work(processes):
        here.looked = not processes.is_main
        return cache(photos(0, 1, 2), vae, tmp_path, processes=processes)

    assert [len(latents) for latents in together(2, work)] == [3, 3]


def test_latents_that_do_not_arrive_are_an_error(tmp_path, vae, together):
    """As on two machines that do not share the folder."""
    errors = together(
        2,
        lambda processes: cache(photos(0, 1), vae, tmp_path / str(processes.index), processes=processes),
    )
    for error, lost in zip(errors, ("1.png", "0.png"), strict=True):
        assert f"latents of picture {lost} must be in {tmp_path}" in str(error)
        assert "once encoded, got none: all processes must see the same cache folder" in str(error)


MIXED = Buckets([(32, 32), (48, 32), (32, 48)], torch.tensor([0, 1, 2, 1, 0]))


def mixed() -> Catalogue:
    forms = [(32, 32), (60, 40), (40, 60), (48, 32), (32, 32)]
    return Catalogue([Picture(noise_image(i, *form), "text", row=i) for i, form in enumerate(forms)])


def test_each_picture_is_encoded_at_its_buckets_size(tmp_path, vae):
    catalogue = mixed()
    latents = cache(catalogue, vae, tmp_path, buckets=MIXED)
    assert vae.encoded == 5
    assert latents.latent_shape == (4, 16, 16)
    for i, bucket in enumerate(MIXED.bucket_ids.tolist()):
        height, width = MIXED.sizes[bucket]
        pixels = ImageTransform(height, width)(catalogue.image(i))[None]
        mean, std = encode_latents(pixels, vae)
        assert latents.shape_of(i) == latents.mean(i).shape == (4, height // 2, width // 2)
        torch.testing.assert_close(latents.mean(i), mean[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(latents.stds([i]), std, atol=1e-5, rtol=1e-5)
    assert latents.means(MIXED.of((48, 32))).shape == (2, 4, 24, 16)


def test_rows_of_several_buckets_are_not_read_together(tmp_path, vae):
    latents = cache(mixed(), vae, tmp_path, buckets=MIXED)
    message = r"read together must be of one bucket, got latents of \[\(4, 16, 16\), \(4, 24, 16\)\]"
    for read in (latents.means, latents.stds):
        with pytest.raises(ValueError, match=message):
            read([0, 1])


def test_buckets_find_what_is_cached_at_their_size(tmp_path, vae):
    cache(mixed(), vae, tmp_path)
    plain = cache(mixed(), vae, tmp_path)
    bucketed = cache(mixed(), vae, tmp_path, buckets=MIXED)
    assert vae.encoded == 5 + 3
    assert bucketed.content_hash != plain.content_hash
    assert torch.equal(bucketed.mean(4), plain.mean(4))


def test_another_assignment_is_another_content(tmp_path, vae):
    turned = Buckets(MIXED.sizes, torch.tensor([0, 2, 1, 1, 0]))
    one, other = (cache(mixed(), vae, tmp_path, buckets=buckets) for buckets in (MIXED, turned))
    assert one.content_hash != other.content_hash
    assert other.shape_of(1) == (4, 16, 24)


def test_equal_pictures_in_two_buckets_are_two_latents(tmp_path, vae):
    buckets = Buckets([(32, 32), (48, 32)], torch.tensor([0, 1]))
    latents = cache(photos(0, 0), vae, tmp_path, buckets=buckets)
    assert vae.encoded == 2
    assert [latents.shape_of(i) for i in range(2)] == [(4, 16, 16), (4, 24, 16)]


def test_processes_share_buckets(tmp_path, monkeypatch, together):
    vaes = [counted(tiny_vae(), monkeypatch) for _ in range(2)]
    caches = together(
        2,
        lambda processes: cache(
            mixed(), vaes[processes.index], tmp_path, buckets=MIXED, processes=processes, batch_size=1
        ),
    )
    assert sorted(vae.encoded for vae in vaes) == [2, 3]
    alone = cache(mixed(), tiny_vae(), tmp_path / "alone", buckets=MIXED, batch_size=1)
    for latents in caches:
        assert latents.content_hash == alone.content_hash
        assert all(torch.equal(latents.mean(i), alone.mean(i)) for i in range(5))
    rows = [len(read_entries(folder)) for folder in tmp_path.iterdir() if folder.name != "alone"]
    assert sorted(rows) == [1, 2, 2]


def test_buckets_of_other_pictures(tmp_path, vae):
    with pytest.raises(ValueError, match="buckets must be of 2 pictures, got 5"):
        cache(photos(0, 1), vae, tmp_path, buckets=MIXED)

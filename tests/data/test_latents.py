"""Latents are found by content: encoded once, never stale, equal to a direct encode."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from onbrand.data import Catalogue, ImageTransform, Picture, cache_latents
from onbrand.data.latents import encode_latents, weights_hash
from PIL import Image

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


def noise_image(seed: int, size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


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
    assert not list(tmp_path.rglob("*.tmp"))


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
    with pytest.raises(ValueError, match=rf"latent shard .*{shard.name} must be readable, got .*; delete it"):
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

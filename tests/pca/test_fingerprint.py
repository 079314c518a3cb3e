"""VAE fingerprints: one VAE in two precisions agrees, another does not."""

import copy
import json

import pytest
import torch
from onbrand.pca import check_text, check_vae, encode_mean, text_fingerprint, vae_fingerprint
from onbrand.pca.fingerprint import reference_picture


@pytest.fixture(scope="module")
def vae(tiny):
    return tiny.make_vae()


def test_the_picture_is_drawn_within_range_and_the_same_each_time():
    picture = reference_picture(64)
    assert picture.shape == (1, 3, 64, 64)
    assert picture.abs().max() <= 1
    assert picture.flatten(2).std(2).min() > 0.2
    assert torch.equal(picture, reference_picture(64))


def test_latents_are_the_scaled_posterior_mean(tiny):
    vae = tiny.make_vae(shift_factor=0.5, scaling_factor=2.0)
    pixels = reference_picture(32)
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(encode_mean(vae, pixels), (mean - 0.5) * 2.0)
    assert encode_mean(copy.deepcopy(vae).to(torch.bfloat16), pixels).dtype == torch.float32


def test_a_fingerprint_survives_json_and_fits_its_own_vae(vae):
    stored = json.loads(json.dumps(vae_fingerprint(vae)))
    assert stored["latent_shape"] == [4, 16, 16]
    assert stored["config"]["block_out_channels"] == [4, 4, 8]
    check_vae(stored, vae)
    check_vae(None, vae)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_of_one_vae_agree(vae, dtype):
    check_vae(vae_fingerprint(vae), copy.deepcopy(vae).to(dtype))
    check_vae(vae_fingerprint(copy.deepcopy(vae).to(dtype)), vae)


def test_other_weights_are_refused_with_both_values(vae, tiny):
    with pytest.raises(ValueError, match=r"within 2% of their RMS 0\.\d+, got an RMS difference of 0\.\d+"):
        check_vae(vae_fingerprint(vae), tiny.make_vae(seed=1))


@pytest.mark.parametrize(("scale", "agrees"), [(1.01, True), (1.03, False)])
def test_the_tolerance_is_two_percent(vae, scale, agrees):
    """Latents of a VAE whose last encoder layer is scaled differ by exactly that scale."""
    other = copy.deepcopy(vae)
    other.quant_conv.weight.data *= scale
    other.quant_conv.bias.data *= scale
    if agrees:
        check_vae(vae_fingerprint(vae), other)
    else:
        with pytest.raises(ValueError, match="must agree within 2%"):
            check_vae(vae_fingerprint(vae), other)


def test_another_config_is_refused_with_both_values(vae, tiny):
    stored = vae_fingerprint(vae)
    with pytest.raises(ValueError, match=r"VAE scaling_factor must be 0.18215 .*, got 0.5"):
        check_vae(stored, tiny.make_vae(scaling_factor=0.5))
    stored["latent_shape"], stored["latents"] = [1, 1, 2], "0.5 0.25"
    with pytest.raises(ValueError, match=r"must have shape \(1, 1, 2\) .*, got \(4, 16, 16\)"):
        check_vae(stored, vae)


def test_a_vae_that_gives_nan_has_no_fingerprint(vae):
    broken = copy.deepcopy(vae)
    broken.quant_conv.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="VAE must encode the test picture to finite latents"):
        vae_fingerprint(broken)


def test_one_text_encoder_in_two_precisions_agrees_and_another_does_not():
    embedding = torch.linspace(-1, 1, 12)[None]
    stored = json.loads(json.dumps(text_fingerprint(lambda captions: embedding)))
    check_text(stored, lambda captions: embedding)
    check_text(stored, lambda captions: embedding.bfloat16())
    check_text(None, lambda captions: embedding[:, :3])
    with pytest.raises(ValueError, match="must give 12 values a text as in the start distribution, got 11"):
        check_text(stored, lambda captions: embedding[:, 1:])
    with pytest.raises(ValueError, match=r"within 2% of their RMS 0\.\d+, got an RMS difference of 0\.\d+"):
        check_text(stored, lambda captions: embedding * 1.03)
    with pytest.raises(ValueError, match="got an RMS difference of nan"):
        check_text(stored, lambda captions: embedding / 0 * 0)

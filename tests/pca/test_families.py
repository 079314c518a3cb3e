"""Every family of start distributions: what is fitted, projected, expected and drawn."""

import numpy as np
import pytest
import torch
from onbrand.pca import ANY_CLASS, FAMILIES, StartDistribution, fit_statistics
from onbrand.pca.families import low_frequencies
from scipy.fft import dctn
from sklearn.decomposition import PCA

SHAPE = (2, 6, 5)
NAMES = ["mug", "shoe"]


@pytest.fixture(scope="module")
def catalogue():
    """(latents, class_ids, text embeddings): 90 mugs, 30 shoes, whose latents follow their text."""
    g = torch.Generator().manual_seed(0)
    ids = (torch.arange(120) % 4 == 3).long()
    text = torch.randn(120, 3, generator=g)
    linear = 3 * torch.randn(3, 60, generator=g)
    x = text @ linear + 0.3 * torch.randn(120, 60, generator=g) + 2.0 * ids[:, None]
    return x.view(120, *SHAPE), ids, text


def fit(catalogue, family, **options):
    x, ids, text = catalogue
    embeds = {"text_embeds": text} if family == "text" else {}
    return StartDistribution.fit(x, ids, class_names=NAMES, family=family, **embeds, **options)


OPTIONS = {
    "pca": {"components": 3},
    "pooled": {"components": 3},
    "diagonal": {},
    "dct": {"band": 2},
    "text": {"components": 3},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_class_means_and_survives_saving(catalogue, family, tmp_path):
    x, ids, text = catalogue
    d = fit(catalogue, family, **OPTIONS[family])
    torch.testing.assert_close(d.mean[1], x[ids == 1].mean(0), atol=1e-5, rtol=1e-5)
    d.save_pretrained(tmp_path)
    copy = StartDistribution.from_pretrained(tmp_path)
    assert copy.family == family
    assert copy.config["format_version"] == (1 if family == "pca" else 3)
    told = {"text_embeds": text[:4]} if family == "text" else {}
    for name in ("project", "expected", "sample"):
        arguments = (x[:4], ids[:4]) if name == "project" else (ids[:4],)
        torch.manual_seed(0)
        found = getattr(copy, name)(*arguments, **told)
        torch.manual_seed(0)
        assert torch.equal(found, getattr(d, name)(*arguments, **told))
        assert found.shape == (4, *SHAPE)


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_have_the_familys_mean_and_variances(catalogue, family):
    _, _, text = catalogue
    d = fit(catalogue, family, **OPTIONS[family])
    told = {"text_embeds": text[:1].expand(4000, -1)} if family == "text" else {}
    ids = torch.ones(4000).long()
    drawn = d.sample(ids, torch.Generator().manual_seed(1), **told).double()
    expected = d.expected(ids[:1], text_embeds=text[:1] if family == "text" else None)[0].double()
    if family == "diagonal":
        variances = d.pixel_variances[1].double()
    else:
        along = d.residual_variances[1] if family == "text" else d.variances[1]
        variances = torch.einsum("k,kchw->chw", along.double(), d.components[1].double() ** 2)
    # five standard errors of a mean and of a variance over 4,000 draws
    assert ((drawn.mean(0) - expected).abs() <= 5 * (variances / 4000).sqrt() + 1e-6).all()
    torch.testing.assert_close(drawn.var(0), variances, rtol=5 * (2 / 4000) ** 0.5, atol=1e-6)


def test_the_diagonal_family_has_every_values_variance_and_projects_nowhere(catalogue):
    x, ids, _ = catalogue
    d = fit(catalogue, "diagonal")
    torch.testing.assert_close(d.pixel_variances[0], x[ids == 0].var(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(d.project(x[:5], ids[:5]), x[:5])
    assert d.default_start == "draw"


def test_the_low_band_is_kept_and_the_rest_is_the_class_means(catalogue):
    x, ids, _ = catalogue
    d = fit(catalogue, "dct", band=2)
    projected = d.project(x, ids).numpy()
    found, own, mean = (
        dctn(a, axes=(2, 3), norm="ortho") for a in (projected, x.numpy(), d.mean[ids].numpy())
    )
    np.testing.assert_allclose(found[:, :, :2, :2], own[:, :, :2, :2], atol=2e-4)
    mean[:, :, :2, :2] = found[:, :, :2, :2]
    np.testing.assert_allclose(found, mean, atol=2e-4)
    assert d.components.shape[1] == 2 * 2 * 2
    band = dctn(x[ids == 0].numpy(), axes=(2, 3), norm="ortho")[:, :, :2, :2].reshape(-1, 8)
    oracle = PCA(8, svd_solver="full").fit(band)
    np.testing.assert_allclose(d.variances[0], oracle.explained_variance_, rtol=1e-4)


def test_low_frequencies_are_the_inverse_cosine_transform():
    waves = low_frequencies(3, 6, 5)
    torch.testing.assert_close(waves.flatten(1) @ waves.flatten(1).T, torch.eye(9), atol=1e-6, rtol=0)
    coefficients = dctn(waves.numpy(), axes=(1, 2), norm="ortho")[:, :3, :3].reshape(9, 9)
    np.testing.assert_allclose(coefficients, np.eye(9), atol=1e-6)


def test_known_statistics_are_held_to_the_same_rule(catalogue):
    x, _, _ = catalogue
    few = fit_statistics(x[:5], (torch.arange(5) == 4).long(), class_names=NAMES, reserve=3)
    with pytest.raises(ValueError, match=r"class 'shoe' has n = 1 pictures, got components = 2"):
        StartDistribution.fit([], class_names=NAMES, components=2, statistics=few)


def test_a_pooled_mixture_draws_classes_by_frequency(catalogue):
    x, ids, _ = catalogue
    d = fit(catalogue, "pooled")
    anyone = torch.full((4000,), ANY_CLASS)
    drawn = d.sample(anyone, torch.Generator().manual_seed(0))
    is_shoe = (drawn == d.mean[1]).flatten(1).all(1)
    assert (is_shoe | (drawn == d.mean[0]).flatten(1).all(1)).all()
    assert abs(is_shoe.float().mean() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(d.sample(ids), d.mean[ids])
    torch.testing.assert_close(d.expected(anyone[:1])[0], x.mean(0), atol=1e-5, rtol=1e-5)
    assert torch.equal(d.expected(ids), d.mean[ids])
    assert torch.equal(d.project(x, ids), d.mean[ids])
    assert d.default_start == "draw"
    with pytest.raises(ValueError, match=r"class_ids must be in \[0, 2\), got -1"):
        d.project(x[:1], anyone[:1])  # a picture has a class


def test_text_says_where_training_and_sampling_start(catalogue):
    x, ids, text = catalogue
    d = fit(catalogue, "text", components=3)
    expected = d.expected(ids, text_embeds=text)
    assert torch.equal(d.project(x, ids, text_embeds=text), expected)
    own = StartDistribution.fit(x, ids, class_names=NAMES, components=3)
    # the text tells nearly all there is to know, so the expected start is nearly the picture's own projection
    missed = (expected - own.project(x, ids)).flatten(1).norm(dim=1)
    assert (missed < 0.2 * (own.project(x, ids) - own.mean[ids]).flatten(1).norm(dim=1)).float().mean() > 0.9
    assert torch.equal(d.project(x, ids), own.project(x, ids))  # of a picture whose text is not known
    assert torch.equal(d.variances, own.variances)
    assert (d.residual_variances < 0.1 * d.variances).all()
    assert d.default_start == "mean"
    assert d.needs_text
    assert not own.needs_text


def test_the_default_start_draws_where_there_is_something_to_draw(catalogue):
    assert fit(catalogue, "pca").default_start == "mean"
    assert fit(catalogue, "pca", components=2).default_start == "draw"
    assert fit(catalogue, "dct", band=1).default_start == "draw"


def test_what_does_not_fit_a_family_is_refused(catalogue):
    x, ids, text = catalogue

    def refuse(match, family, **options):
        with pytest.raises(ValueError, match=match):
            StartDistribution.fit(x, ids, class_names=NAMES, family=family, **options)

    refuse("family must be one of pca, pooled, diagonal, dct, text, got 'ica'", "ica")
    refuse("components must be 0 with family 'diagonal', got 2", "diagonal", components=2)
    refuse("components must be 0 with family 'dct', got 2", "dct", components=2)
    refuse("components must be at least 1 with family 'text', got 0", "text", text_embeds=text)
    refuse("text_embeds must be given with family 'text', got NoneType", "text", components=2)
    refuse("text_embeds must be left out with family 'pca', got Tensor", "pca", text_embeds=text)
    refuse(r"band must be in \[1, 5\], the size of the latents, got 6", "dct", band=6)
    with pytest.raises(ValueError, match=r"family must be one of pca, .* got 'ica'"):
        StartDistribution(NAMES, list(SHAPE), family="ica")
    d = fit(catalogue, "text", components=2)
    rule = r"text_embeds must be shaped \(2, 3\) for a text-conditioned start, got "
    with pytest.raises(ValueError, match=rule + "None"):
        d.expected(ids[:2])
    with pytest.raises(ValueError, match=rule + r"\(2, 4\)"):
        d.sample(ids[:2], text_embeds=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=rule + r"\(2, 1\)"):
        d.project(x[:2], ids[:2], text_embeds=text[:2, :1])
    with pytest.raises(ValueError, match=r"class_ids must be in \[0, 2\), got -1"):
        d.sample(torch.tensor([ANY_CLASS]), text_embeds=text[:1])
    pooled = fit(catalogue, "pooled")
    with pytest.raises(ValueError, match=r"class_ids must be in \[0, 2\), got -2"):
        pooled.sample(torch.tensor([-2]))
    with pytest.raises(ValueError, match="bucket family must be text as at 6x5, got pca"):
        d.add_bucket(StartDistribution.fit(x[..., :4], ids, class_names=NAMES, components=2))

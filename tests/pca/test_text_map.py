"""The ridge regression from text to principal components, against scikit-learn on the pictures themselves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onbrand.pca.fit import fit_statistics
from onbrand.pca.text_map import _fold, fit_text_map
from sklearn.linear_model import Ridge

SHAPE = (2, 4, 4)
K, WIDTH = 3, 5


def told(n, *, noise=0.1, seed=0, texts=None):
    """Latents that follow a linear map of their text but for noise, with class ids and embeddings."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(texts or n, WIDTH, generator=g)[torch.arange(n) % (texts or n)]
    linear = torch.randn(WIDTH, 32, generator=g) * torch.tensor([4.0, 2, 1, 0.1, 0.1])[:, None]
    x = text @ linear + noise * torch.randn(n, 32, generator=g) + 7
    return x.view(n, *SHAPE), torch.arange(n) % 2, text


def tensors_of(x, ids):
    found = fit_statistics(x, ids, class_names=["mug", "shoe"], components=K)
    return {
        "mean": found.mean,
        "components": found.components(K),
        "variances": found.variances[:, :K].float(),
    }


def scores_of(x, ids, tensors, c):
    rows = (x[ids == c] - tensors["mean"][c]).flatten(1)
    return (rows @ tensors["components"][c].flatten(1).T).double().numpy()


@pytest.mark.parametrize("texts", [None, 12], ids=["a text a picture", "twelve texts"])
def test_equals_scikit_learns_ridge_on_the_pictures(texts):
    x, ids, text = told(200, noise=2.0, texts=texts)
    tensors = tensors_of(x, ids)
    weight, bias, residual = fit_text_map(x, ids, text, tensors=tensors)
    for c in range(2):
        t, s = text[ids == c].double().numpy(), scores_of(x, ids, tensors, c)
        folds = np.array([_fold(one) for one in text[ids == c].double()])
        spread = np.trace((t - t.mean(0)).T @ (t - t.mean(0))) / WIDTH
        errors = {}
        for penalty in 10.0 ** np.arange(-5, 3) * spread:
            left_out = np.zeros_like(s)
            for fold in set(folds):
                model = Ridge(alpha=penalty).fit(t[folds != fold], s[folds != fold])
                left_out[folds == fold] = model.predict(t[folds == fold])
            errors[penalty] = ((s - left_out) ** 2).sum(0)
        best = min(errors, key=lambda penalty: errors[penalty].sum())
        oracle = Ridge(alpha=best).fit(t, s)
        np.testing.assert_allclose(weight[c], oracle.coef_, atol=1e-4)
        np.testing.assert_allclose(bias[c], oracle.intercept_, atol=1e-4)
        expected = np.minimum(errors[best] / (len(s) - 1), tensors["variances"][c])
        np.testing.assert_allclose(residual[c], expected, rtol=1e-3)


def test_what_text_tells_leaves_little_and_what_it_does_not_leaves_all():
    x, ids, text = told(300, noise=0.05)
    tensors = tensors_of(x, ids)
    known = fit_text_map(x, ids, text, tensors=tensors).residual_variances
    assert (known < 0.05 * tensors["variances"]).all()
    other = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(9))
    unknown = fit_text_map(x, ids, other, tensors=tensors)
    assert (unknown.residual_variances > 0.9 * tensors["variances"]).all()
    assert (unknown.residual_variances <= tensors["variances"]).all()


def test_one_text_for_all_tells_nothing():
    x, ids, text = told(40)
    tensors = tensors_of(x, ids)
    weight, bias, residual = fit_text_map(x, ids, text[:1].expand(40, -1), tensors=tensors)
    assert not weight.any()
    assert not bias.any()
    assert torch.equal(residual, tensors["variances"])


@pytest.mark.parametrize("n", [4, 16, 200])
def test_two_texts_tell_what_the_one_left_out_cannot(n):
    """With either text left out the rest is one text, which foretells nothing but its own mean."""
    two = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0.1]])
    assert _fold(two[0].double()) != _fold(two[1].double())
    text, ids = two.repeat(n, 1), torch.zeros(2 * n).long()
    x = 10 * text @ torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    x = (x + 0.1 * torch.randn(2 * n, 32, generator=torch.Generator().manual_seed(2))).view(-1, *SHAPE)
    found = fit_statistics(x, ids, class_names=["mug"], components=K)
    tensors = {"mean": found.mean, "components": found.components(K), "variances": found.variances.float()}
    weight, bias, residual = fit_text_map(x, ids, text, tensors=tensors)
    assert weight.isfinite().all()
    torch.testing.assert_close(residual, tensors["variances"])
    told = weight[0] @ two.T + bias[0][:, None]
    assert (told[0, 0] - told[0, 1]).abs() < 2.1 * found.variances[0, 0].sqrt()


def test_an_error_in_one_process_ends_the_others():
    x, ids, text = told(20)
    tensors = tensors_of(x, ids)
    elsewhere = SimpleNamespace(index=0, count=2, gather=lambda own: [*own, 1 + 0 * own[0]])
    with pytest.raises(
        ValueError, match="text_embeds must be right in all processes, got errors in 1 others"
    ):
        fit_text_map(x, ids, text, tensors=tensors, processes=elsewhere)


def test_batches_order_shares_and_groups_do_not_matter(monkeypatch):
    x, ids, text = told(60, noise=1.0, texts=30)
    tensors = tensors_of(x, ids)
    whole = fit_text_map(x, ids, text, tensors=tensors)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    batches = list(zip(x[order].split(7), ids[order].split(7), strict=True))
    monkeypatch.setattr("onbrand.pca.text_map.HELD_BYTES", 1)  # one class at a time
    batched = fit_text_map(batches, None, text[order], tensors=tensors)
    halves = []
    first = SimpleNamespace(index=0, count=2, gather=lambda own: halves.append(own) or own)
    fit_text_map(x[:25], ids[:25], text[:25], tensors=tensors, processes=first)
    rest = iter(halves)
    second = SimpleNamespace(index=1, count=2, gather=lambda own: next(rest) + own)
    shared = fit_text_map(x[25:], ids[25:], text[25:], tensors=tensors, processes=second)
    for found in (batched, shared):
        for a, b in zip(found, whole, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_embeddings_that_do_not_fit_are_refused():
    x, ids, text = told(20)
    tensors = tensors_of(x, ids)
    rule = "text_embeds must be one finite embedding a picture, got "
    with pytest.raises(ValueError, match=rule + "19 for 20"):
        fit_text_map(x, ids, text[:19], tensors=tensors)
    with pytest.raises(ValueError, match=rule + "21 for 20"):
        fit_text_map(x, ids, torch.cat([text, text[:1]]), tensors=tensors)
    with pytest.raises(ValueError, match=rule + "nan or inf"):
        fit_text_map(x, ids, text / 0, tensors=tensors)

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onbrand.assets import build as building
from onbrand.assets.loop import optimise
from onbrand.assets.photo_base import photo_base
from onbrand.assets.tokenizer import WORDS, build_tokenizer
from onbrand.data.studio import Shot
from onbrand.inference import load_pipeline


def test_one_command_builds_a_base_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "ON_BRAND", 16)
    out = tmp_path / "tiny-base"
    building.build(tmp_path / "work", out, vae_steps=2, base_steps=2, pictures=64)
    pipeline = load_pipeline(out, torch_dtype=torch.float32)
    latents = pipeline("a red mug", num_inference_steps=2, output_type="latent", width=64, height=64).images
    assert latents.shape == (1, 4, 16, 16)
    history = json.loads((out / "training" / "history.json").read_text())
    assert (history["vae"]["steps"], history["base"]["steps"], history["pictures"]["wild"]) == (2, 2, 64)
    assert set(history["seconds"]) == {"vae", "base"}


def test_photographs_of_any_size_make_a_base_that_knows_their_words(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for i in range(64):
        name = f"{i}.png"
        Shot("wild", 64 + i, 5, i).draw().crop((0, 0, 64, 64 + i)).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": "a photo of golden delicious in a store"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    out = tmp_path / "photo-base"
    photo_base([str(folder), str(folder)], tmp_path / "work", out, vae_steps=2, base_steps=2)
    pipeline = load_pipeline(out, torch_dtype=torch.float32)
    assert len(pipeline.tokenizer("golden delicious").input_ids) == 4
    assert np.load(tmp_path / "work" / "photos.npy").shape == (128, 64, 64, 3)
    assert json.loads((out / "training" / "history.json").read_text())["pictures"] == 128
    with pytest.raises(ValueError, match=r"photos must be those that .*work was begun with, "):
        photo_base([str(folder)], tmp_path / "work", out, vae_steps=2, base_steps=2)


@pytest.mark.parametrize("word", WORDS)
def test_every_studio_word_is_one_token(word: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = build_tokenizer(tmp_path_factory.getbasetemp() / "tokenizer")
    assert len(tokenizer(word).input_ids) == 3


def test_any_other_text_can_be_read(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    assert len(tokenizer("Crème brûlée №5, 3.5 %").input_ids) > 5


def test_the_loop_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def run(work: Path, *, fail_at: int | None = None) -> torch.Tensor:
        work.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model, seen = torch.nn.Linear(3, 1), []

        def loss_of(generator: torch.Generator) -> torch.Tensor:
            seen.append(1)
            if len(seen) == fail_at:
                raise KeyboardInterrupt
            return (model(torch.randn(8, 3, generator=generator)) - 1).pow(2).mean()

        optimise(model, loss_of, name="m", work=work, steps=12, learning_rate=0.1, checkpoint_every=4)
        return model.weight.detach()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", fail_at=7)
    assert torch.equal(run(tmp_path / "broken"), whole)


def test_the_loop_stops_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="loss of m must be finite, got nan at step 0"):
        optimise(
            model,
            lambda _: model.weight.sum() * torch.nan,
            name="m",
            work=tmp_path,
            steps=2,
            learning_rate=0.1,
        )

"""The experiments' parts that no table would show to be wrong."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from onbrand.benchmarks.experiments import catalogue, draw, measure, objectives, tables, trainings
from onbrand.benchmarks.experiments.cells import TABLES, Cell, Comparison
from onbrand.data.studio import CLASSES, COLOURS, Product, Shot
from onbrand.evaluation import calibrate
from onbrand.train import step
from PIL import Image

SCHEDULER = DDPMScheduler(num_train_timesteps=1000)
SCHEDULE = {
    "alphas_cumprod": SCHEDULER.alphas_cumprod,
    "offset_from": 1000,
    "prediction_type": "epsilon",
}


def batch(count: int = 64) -> tuple[torch.Tensor, ...]:
    x_0, noise = torch.randn(2, count, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return x_0, x_0, noise, torch.arange(count) % 64 * 10 + 300


NOISE_OFFSET = partial(objectives.noise_offset, strength=0.1)
PYRAMID = partial(objectives.multi_resolution, discount=0.3)


@pytest.mark.parametrize("objective", [NOISE_OFFSET, PYRAMID])
def test_a_shifted_noise_is_the_target_of_what_it_noised(objective: objectives.Objective) -> None:
    torch.manual_seed(0)
    x_0, x_start, noise, timesteps = batch()
    noisy_latents, target = objective(x_0, x_start, noise, timesteps, **SCHEDULE)
    assert torch.allclose(noisy_latents, SCHEDULER.add_noise(x_0, target, timesteps), atol=1e-5)
    assert not torch.allclose(target, noise)


def test_the_noise_offset_is_a_tenth_a_channel() -> None:
    torch.manual_seed(0)
    x_0, x_start, noise, timesteps = batch(512)
    _, target = NOISE_OFFSET(x_0, x_start, noise, timesteps, **SCHEDULE)
    shift = target - noise
    assert torch.allclose(shift, shift.mean(dim=(2, 3), keepdim=True).expand_as(shift), atol=1e-6)
    assert shift[..., 0, 0].std().item() == pytest.approx(0.1, rel=0.05)


def test_multi_resolution_noise_keeps_its_deviation_and_is_smoother() -> None:
    torch.manual_seed(0)
    x_0, x_start, noise, timesteps = batch(512)
    _, target = PYRAMID(x_0, x_start, noise, timesteps, **SCHEDULE)
    assert target.std().item() == pytest.approx(1, abs=1e-3)
    assert target.diff(dim=-1).std() < noise.diff(dim=-1).std()
    assert target.mean(dim=(2, 3)).std() > 1.15 * noise.mean(dim=(2, 3)).std()
    _, stronger = objectives.multi_resolution(x_0, x_start, noise, timesteps, discount=0.8, **SCHEDULE)
    assert stronger.mean(dim=(2, 3)).std() > 3 * noise.mean(dim=(2, 3)).std()


def test_the_plain_objective_can_have_the_timesteps_of_offset_training() -> None:
    x_0, x_start, noise, timesteps = batch()
    late = {**SCHEDULE, "offset_from": 0}
    noisy_latents, target = objectives.same_timesteps(x_0, x_start + 1, noise, timesteps, **late)
    assert torch.equal(noisy_latents, SCHEDULER.add_noise(x_0, noise, timesteps))
    assert torch.allclose(target, noise, atol=1e-5)


def test_input_perturbation_noises_more_than_the_target_says() -> None:
    torch.manual_seed(0)
    x_0, x_start, noise, timesteps = batch(512)
    noisy_latents, target = objectives.input_perturbation(x_0, x_start, noise, timesteps, **SCHEDULE)
    assert torch.equal(target, noise)
    a = SCHEDULER.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    more = (noisy_latents - SCHEDULER.add_noise(x_0, noise, timesteps)) / (1 - a).sqrt()
    assert more.std().item() == pytest.approx(0.1, rel=0.01)


def test_another_objective_lasts_for_its_training_alone() -> None:
    own = step.offset_target
    with trainings._with_objective(objectives.noise_offset):
        assert step.offset_target is objectives.noise_offset
    assert step.offset_target is own
    with trainings._with_objective(None):
        assert step.offset_target is own


def test_the_smaller_last_alpha_hides_the_mean() -> None:
    settings = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(**settings, **dict(trainings.SMALL_LAST_ALPHA))
    assert 1024 * scheduler.alphas_cumprod[-1].item() == pytest.approx(1, rel=0.01)


def test_new_prompts_are_of_products_that_the_catalogue_lacks(tmp_path: Path) -> None:
    known, new = catalogue.products().values()
    assert not set(known) & set(new)
    assert len(known) + len(new) == len(CLASSES) * len(COLOURS) * 3
    assert {product.kind for product in new} == set(CLASSES)
    assert {product.colour for product in known} == set(COLOURS)
    folder = catalogue.catalogue_folder(40, work=tmp_path)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert {row["text"] for row in rows} <= {product.words() for product in known}
    assert len(list(folder.glob("*.png"))) == len(rows) == 40


def test_a_larger_catalogue_has_the_pictures_of_a_smaller_one(tmp_path: Path) -> None:
    small, large = (catalogue.catalogue_folder(n, work=tmp_path) for n in (3, 90))
    names = [file.name for file in small.glob("*.png")]
    assert len(names) == 3
    for name in names:
        assert (small / name).read_bytes() == (large / name).read_bytes()


def test_few_pictures_show_every_kind_and_many_are_the_first() -> None:
    kinds = [catalogue._shown()[i].kind for i in catalogue._chosen(20)]
    assert {kinds.count(kind) for kind in CLASSES} == {2, 3}
    assert catalogue._chosen(80) == list(range(80))


def test_a_smaller_cell_draws_the_first_pictures_of_each_set() -> None:
    rows = catalogue.rows_of(3)
    assert rows == [0, 1, 2, catalogue.PICTURES, catalogue.PICTURES + 1, catalogue.PICTURES + 2]
    assert len(catalogue.rows_of(catalogue.PICTURES)) == len(catalogue.asked())


def test_the_pictures_of_a_product_share_a_control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    products = [Product("mug", "red"), Product("hat", "blue"), Product("mug", "red")]
    real = [Image.fromarray(picture) for picture in pictures(products)]
    monkeypatch.setattr(draw, "asked", lambda: products)
    monkeypatch.setattr(draw, "real_pictures", lambda work: real)
    mug, hat, again = (np.asarray(shown) for shown in draw.shown([0, 1, 2], work=tmp_path))
    assert np.array_equal(mug, again)
    assert not np.array_equal(mug, hat)
    assert (mug[:4] == 0).all()
    middle = slice(28, 36)
    assert np.array_equal(mug[middle, middle], np.asarray(real[0])[middle, middle])


def test_every_cell_is_found_by_its_name() -> None:
    for table in TABLES.values():
        for cell in table.cells(2):
            assert Cell.named(cell.name) == cell
    other = Cell("plain", "class mean", 1, "EulerDiscreteScheduler", 30, 7.5)
    assert Cell.named(other.name) == other
    spaced = Cell("plain", "class mean", 1, spacing="trailing", rescale=0.7)
    assert Cell.named(spaced.name) == spaced
    assert spaced.name == "plain / class mean / 1 / DDIMScheduler 20 2 trailing rescale=0.7"


@pytest.mark.parametrize("name", ["offset / class mean", "offset / nowhere / 0", "none / class mean / 0"])
def test_an_unknown_cell_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match="cell must be TRAINING / START / SEED, with TRAINING of plain, "):
        Cell.named(name)


def pictures(products: list[Product]) -> np.ndarray:
    return np.stack(
        [np.asarray(Shot("on-brand", 64, 3, i, (product,)).draw()) for i, product in enumerate(products)]
    )


def test_the_classifier_reads_what_is_shown() -> None:
    products = [Product(CLASSES[i % 8], list(COLOURS)[i % 10]) for i in range(40)]
    kind, colour, agreement = measure.read(pictures(products), products)
    assert kind.mean() > 0.9
    assert colour.mean() > 0.9
    others = [Product(product.kind, list(COLOURS)[(i + 3) % 10]) for i, product in enumerate(products)]
    _, other_colour, disagreement = measure.read(pictures(products), others)
    assert other_colour.mean() < 0.1
    assert disagreement.mean() < 0.2 < 0.8 < agreement.mean()


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cells and real pictures, measured on few and easy pictures."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(measure, "rows_of", lambda count: [*range(count), *range(20, 20 + count)])
    products = [Product(CLASSES[i % 8], list(COLOURS)[i % 10]) for i in range(40)]
    shown = pictures(products)
    limits = calibrate([Image.fromarray(picture) for picture in shown])
    monkeypatch.setattr(measure, "_limits", lambda work: limits)
    monkeypatch.setattr(measure, "asked", lambda: products)
    measure._add(measure.REAL, shown, work=tmp_path)
    measure._add("offset / class mean / 0", shown, work=tmp_path)
    grey = np.full_like(shown, 128)
    measure._add("plain / pure noise / 0", np.concatenate([shown[:5], grey[5:]]), work=tmp_path)
    return tmp_path


def test_a_line_keeps_which_pictures_passed(lines: Path) -> None:
    found = measure.results()["plain / pure noise / 0"]
    kept = measure.values(found, "catalogue", "kept")
    assert kept.tolist() == [1] * 5 + [0] * 15
    agreed = measure.values(found, "catalogue", "agreed")
    assert agreed.mean() == pytest.approx(found["catalogue"]["agreement"], abs=0.005)
    assert agreed[:5].min() > 0.8
    assert found["catalogue"]["pass"] == kept.mean() == 0.25
    assert found["new"]["pass"] == 0


def test_a_table_shows_what_is_measured_and_what_is_not(lines: Path) -> None:
    rows = [Cell("plain", "pure noise"), Cell("plain", "class mean"), Cell("offset", "class mean")]
    table = tables.table_of(Comparison("few", rows))
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells[1][:4] == ("plain", "pure noise", "1", "25.0 ± 9.9 %")
    assert cells[1][-1].endswith(", p < .001")
    assert cells[2][:3] == ("plain", "class mean", "none")
    assert cells[3][4] == "1.000 ± " + cells[3][4].split("± ")[1]
    lines_of = tables.in_markdown(table=tables.table_of(Comparison("few", rows))).splitlines()
    assert lines_of[0].startswith("| trained | started from | seeds | on brand, catalogue |")
    assert lines_of[3].startswith("| plain | pure noise | 1 | 25.0 ± 9.9 % |")
    assert {line.count("|") for line in lines_of} == {lines_of[0].count("|")}


def line(*, kept: dict[str, list[int]], seed: int) -> dict:
    """A cell's line with the same pictures kept, right and agreed with."""
    sets = {}
    for prompts, pictures in kept.items():
        bits = np.packbits(pictures).tobytes().hex()
        agreed = np.array(pictures, dtype=np.uint8) * 255
        sets[prompts] = {"n": len(pictures), "kept": bits, "right": bits, "agreed": agreed.tobytes().hex()}
    return {"cell": f"offset / class mean / {seed}", **sets}


def written(lines: list[dict]) -> dict[int, tables.Line]:
    """As the tables read them."""
    return {
        seed: {prompts: tables._of_products(line, prompts, 768) for prompts in catalogue.SETS}
        for seed, line in enumerate(lines)
    }


def test_the_pictures_of_a_product_count_as_one() -> None:
    """Half of 48 products fail, 16 times each: the error is of 48, not of 768."""
    kept = {"catalogue": [1] * 192, "new": [i % 48 < 24 for i in range(768)]}
    (found,) = written([line(kept=kept, seed=0)]).values()
    columns = tables._columns(found, found)
    assert columns[3] == "50.0 ± 7.3 %"


def test_a_difference_must_hold_over_products_and_over_seeds() -> None:
    def of(*rates: int) -> dict[int, tables.Line]:
        kept = [[i < rate for i in range(192)] for rate in rates]
        return written([line(kept={"catalogue": k, "new": k[:48]}, seed=i) for i, k in enumerate(kept)])

    assert tables._difference(of(100), of(140)) == "-16.7 ± 2.4, p < .001"
    one_seed_says_no = tables._difference(of(100, 139), of(140, 140))
    assert one_seed_says_no.startswith("-8.5 ± 1.3, p .")
    assert float(one_seed_says_no.split("p ")[1]) > 0.3
    assert tables._difference(of(100, 90, 95), of(140, 131, 134)).endswith("p < .001")
    assert tables._difference(of(100, 90), of(120)) == tables._difference(of(100), of(120))


def test_errors_are_over_products_whatever_the_seeds() -> None:
    kept = {"catalogue": [i < 96 for i in range(192)], "new": [1] * 48}
    lines_of = list(written([line(kept=kept, seed=seed) for seed in range(3)]).values())
    assert tables._columns(tables._mean(lines_of), lines_of[0])[0] == "50.0 ± 3.6 %"


def test_a_table_has_the_pictures_that_every_row_has(lines: Path) -> None:
    first_five = Comparison("few", [Cell("plain", "pure noise")], pictures=5)
    rows = list(tables.table_of(first_five).columns[3].cells)
    assert rows == ["100.0 ± 0.0 %", "100.0 ± 0.0 %"]

"""Winning tickets: blocks of initial noise that the network takes for a concept, collected and laid out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pca.tensor_file import read_tensors, write_tensors
from ..generate import batch_that_fits
from ..noise import Initializer
from .blocks import Tickets, above, averages, choose, cut, seeded_noise, winning, worst_score
from .collect import Scores
from .first_pass import first_timestep
from .layout_noise import LayoutNoise
from .layouts import WINNERS, Layout, covered
from .model import check_model, ticket_fingerprint
from .scores import SharesWork, complete, enlarged
from .setting import Setting, check_concepts

FILE, ABOUT = "tickets.safetensors", "collection"  # in a folder; its header's key


@dataclass(frozen=True)
class TicketCollection:
    """Blocks of seeded noises with their scores on concepts.

    scores: S_i(j) at (i, j, noise, row, column), float32 in [0, 1], nan where not collected (i against
    itself always); seeds: of the noises, which are drawn again when needed; fingerprint: the model's.
    Source: METHODS 4.
    """

    concepts: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Tensor
    setting: Setting
    fingerprint: str

    @classmethod
    def build(
        cls,
        pipeline: Any,
        concepts: Sequence[str],
        *,
        noises: int = 100,
        seed: int = 0,
        layer: str | None = None,
        prompt: str = "a {} and a {}",
        both_orders: bool = False,
        class_name: str | None = None,
        start: str | None = "mean",
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        batch_size: int | None = None,
        processes: SharesWork | None = None,
        resume_from: str | Path | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> TicketCollection:
        """Scores every block of `noises` noises on each concept against each other, at the first step.

        seed: noise i has seed + i. layer: of the attention map, see `find_layer`. prompt: with two places for
        concepts, or none: then all must stand in it, and one pass reads them all. both_orders: the mean
        over "a, b" and "b, a". class_name, start ("mean" or None), num_inference_steps, height, width
        (pixels): as for the pictures to come; without a start distribution the start is pure noise.
        batch_size: passes at a time, by default as many as for pictures; processes: what shares the work out,
        such as data.processes.Processes; resume_from: a folder for finished parts, from which an interrupted
        call goes on; advance(n): called after every n maps, one a noise and prompt, of len(texts_of(...))
        prompts.
        Raises ValueError on fewer than two concepts, one twice or cut off in its prompt, and as `Setting.of`.
        """
        setting = Setting.of(
            pipeline,
            layer=layer,
            prompt=prompt,
            both_orders=both_orders,
            class_name=class_name,
            start=start,
            steps=num_inference_steps,
            height=height,
            width=width,
        )
        empty = torch.empty(0, 0, 0, *setting.grid)
        none = cls((), (), empty, setting, ticket_fingerprint(pipeline, setting))
        return none._collected(
            pipeline,
            tuple(concepts),
            tuple(range(seed, seed + noises)),
            batch_size=batch_size,
            processes=processes,
            resume_from=resume_from,
            advance=advance,
        )

    def extend(
        self,
        pipeline: Any,
        concepts: Sequence[str] = (),
        *,
        noises: int = 0,
        batch_size: int | None = None,
        processes: SharesWork | None = None,
        resume_from: str | Path | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> TicketCollection:
        """With further concepts, and further noises of the seeds that follow; computes only what is missing.

        batch_size, processes, resume_from, advance: as for `build`.
        Raises ValueError on a pipeline of another model or first timestep, and as `build`.
        """
        self.check(pipeline)
        timestep = first_timestep(pipeline, self.setting.steps)
        if timestep != self.setting.timestep:
            raise ValueError(f"sampler must begin at timestep {self.setting.timestep}, got {timestep}")
        following = range(max(self.seeds) + 1, max(self.seeds) + 1 + noises)
        return self._collected(
            pipeline,
            (*self.concepts, *concepts),
            (*self.seeds, *following),
            batch_size=batch_size,
            processes=processes,
            resume_from=resume_from,
            advance=advance,
        )

    def _collected(
        self,
        pipeline: Any,
        concepts: tuple[str, ...],
        seeds: tuple[int, ...],
        *,
        batch_size: int | None,
        processes: SharesWork | None,
        resume_from: str | Path | None,
        advance: Callable[[int], None],
    ) -> TicketCollection:
        check_concepts(concepts)
        if not seeds:
            raise ValueError("noises must be at least 1, got 0")
        whole = self._enlarged(concepts, seeds)
        area = self.setting.latent_shape[1] * self.setting.latent_shape[2]
        compute = Scores(
            pipeline,
            self.setting,
            fingerprint=self.fingerprint,
            batch_size=batch_size or batch_that_fits(area),
            folder=None if resume_from is None else Path(resume_from),
            advance=advance,
        )
        complete(whole.scores, compute, concepts=concepts, seeds=seeds, processes=processes)
        return whole

    def _enlarged(self, concepts: tuple[str, ...], seeds: tuple[int, ...]) -> TicketCollection:
        """With room for more concepts and noises, whose scores are nan."""
        known = [concepts.index(concept) for concept in self.concepts]
        places = [seeds.index(seed) for seed in self.seeds]
        scores = enlarged(self.scores, known, places, (len(concepts), len(seeds)))
        return replace(self, concepts=concepts, seeds=seeds, scores=scores)

    def merge(self, other: TicketCollection) -> TicketCollection:
        """Both collections' concepts and noises; of scores that both have this one's are kept.

        What neither has, such as one's concepts on the other's noises, stays uncollected: `extend` adds it.
        Raises ValueError on collections of other models or settings.
        """
        check_model(self.fingerprint, other.fingerprint)
        for name, ours in asdict(self.setting).items():
            theirs = getattr(other.setting, name)
            if ours != theirs:
                raise ValueError(f"{name} must be {ours!r} as in the first collection, got {theirs!r}")
        concepts = tuple(dict.fromkeys(self.concepts + other.concepts))
        seeds = tuple(dict.fromkeys(self.seeds + other.seeds))
        mine, theirs = self._enlarged(concepts, seeds), other._enlarged(concepts, seeds)
        return replace(mine, scores=torch.where(mine.scores.isnan(), theirs.scores, mine.scores))

    def save(self, folder: str | Path) -> None:
        """Writes the folder that `load` reads: one safetensors file, its header with all but the scores."""
        setting = asdict(self.setting)
        about = {"concepts": self.concepts, "seeds": self.seeds, "setting": setting}
        told = json.dumps(about | {"fingerprint": self.fingerprint})
        write_tensors({"scores": self.scores}, Path(folder) / FILE, {ABOUT: told})

    @classmethod
    def load(cls, folder: str | Path) -> TicketCollection:
        """Reads a saved collection.

        Raises ValueError on a folder without one, and on scores that do not fit what is said of them.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise ValueError(f"tickets must be a folder with {FILE}, got {folder}")
        tensors, metadata = read_tensors(file, what="ticket collection")
        if ABOUT not in metadata or set(tensors) != {"scores"}:
            told = f"{sorted(tensors)}, and {sorted(metadata)} told of them"
            raise ValueError(f"ticket collection {file} must hold scores of concepts, got {told}")
        about = json.loads(metadata[ABOUT])
        shape = tuple(about["setting"].pop("latent_shape"))
        setting = Setting(latent_shape=shape, **about["setting"])
        concepts, seeds, scores = tuple(about["concepts"]), tuple(about["seeds"]), tensors["scores"]
        expected = (len(concepts), len(concepts), len(seeds), *setting.grid)
        if tuple(scores.shape) != expected:
            raise ValueError(f"scores must have shape {expected} as {file} says, got {tuple(scores.shape)}")
        return cls(concepts, seeds, scores, setting, about["fingerprint"])

    def check(self, pipeline: Any) -> None:
        """Raises ValueError on a pipeline whose model is not the one these tickets were collected with."""
        check_model(self.fingerprint, ticket_fingerprint(pipeline, self.setting))

    def winners(
        self,
        concept: str,
        among: Sequence[str] | None = None,
        *,
        t_obj: float = 0.5,
        t_neg: float | None = None,
        at_least: int = 1,
    ) -> Tickets:
        """The blocks that win for a concept within a list of concepts (None: all of them).

        Its score against each other one of the list is above t_obj, for a single one its average over the
        collection; with t_neg theirs against it is below t_neg as well. Blocks that two of the list win are
        dropped. If some, but fewer than at_least win, the best of the others are added, marked `fell_back`.
        Raises ValueError on an unknown concept, on a pair that was not collected and if no block wins.
        """
        names = list(dict.fromkeys([*(self.concepts if among is None else among), concept]))
        members = [self._place(name) for name in names]
        self._check_collected(members)
        wins = winning(self.scores, members, t_obj=t_obj, t_neg=t_neg)
        own = names.index(concept)
        ranking = worst_score(self.scores, members[own], members)
        if not wins[own].any():
            others = ", ".join(name for name in names if name != concept) or "the others on average"
            raise ValueError(
                f"tickets of {concept!r} must score above {t_obj} against {others} and win for it alone, "
                f"got none in {len(self.seeds)} noises: the best scores {float(ranking.max()):.2f}; "
                "collect more noises or lower t_obj"
            )
        over = above(self.scores, members, t_obj)
        over[own] = False
        return choose(wins[own], ranking, ~over.any(dim=0), at_least=at_least)

    def background_winners(
        self, among: Sequence[str] | None = None, *, t_bg: float = 0.1, at_least: int = 1
    ) -> Tickets:
        """The blocks whose average score on every concept of a list (None: all of them) is below t_bg.

        Their score is minus their largest average. at_least and Raises: as `winners`.
        """
        members = [self._place(name) for name in (self.concepts if among is None else among)]
        ranking = -averages(self.scores[members]).amax(dim=0).nan_to_num(nan=torch.inf)
        wins = ranking > -t_bg
        if not wins.any():
            raise ValueError(
                f"tickets of the background must score below {t_bg} on average on every concept, got none in "
                f"{len(self.seeds)} noises: the best scores {-float(ranking.max()):.2f}; "
                "collect more noises or raise t_bg"
            )
        return choose(wins, ranking, torch.ones_like(wins), at_least=at_least)

    def blocks(self, tickets: Tickets) -> Tensor:
        """The noise of tickets, (n, C, block, block) float32."""
        found = torch.empty(len(tickets), self.setting.latent_shape[0], *[self.setting.block] * 2)
        for index in tickets.noise.unique().tolist():
            own = tickets.noise == index
            noise = cut(seeded_noise([self.seeds[index]], self.setting.latent_shape), self.setting.block)
            found[own] = noise[0, tickets.row[own], tickets.column[own]]
        return found

    def layout_noise(
        self,
        layout: Layout,
        *,
        among: Sequence[str] | None = None,
        t_obj: float = 0.5,
        t_bg: float = 0.1,
        t_neg: float | None = None,
        at_least: int = 8,
        recalibrate: bool = False,
        background: Initializer | None = None,
        size: tuple[int, int] | None = None,
    ) -> LayoutNoise:
        """An initializer that puts winning tickets where a layout wants their concepts.

        among: what the concepts win against, by default each other. at_least: see `winners`; with fewer
        blocks than that a region looks tiled. recalibrate, background: see `LayoutNoise`, whose report lists
        the blocks that fell back; a warning counts them. size: height and width of the latents to come, if
        not the collection's.
        Raises ValueError on a layout that does not fit these latents and as `winners`.
        """
        names = list(layout.concepts if among is None else among)
        for name in layout.concepts:
            self._place(name)
        regions = covered(
            layout,
            size or (self.setting.latent_shape[1], self.setting.latent_shape[2]),
            block=self.setting.block,
            pixels_per_latent=self.setting.pixels_per_latent,
        )
        pools, report = {}, {}
        for name, region in regions.items():
            if name == WINNERS:
                tickets = self.background_winners(names, t_bg=t_bg, at_least=at_least)
            else:
                tickets = self.winners(name, names, t_obj=t_obj, t_neg=t_neg, at_least=at_least)
            pools[name] = self.blocks(tickets)
            report[name] = self._told(tickets, needed=int(region.sum()))
        late = {name: len(told["fell_back"]) for name, told in report.items() if told["fell_back"]}
        if late:
            counts = ", ".join(
                f"{count} of {len(pools[name])} tickets of {name}" for name, count in late.items()
            )
            warnings.warn(f"too few winners: {counts} fall short of their threshold", stacklevel=2)
        return LayoutNoise(
            layout=layout,
            pools=pools,
            block=self.setting.block,
            pixels_per_latent=self.setting.pixels_per_latent,
            recalibrate=recalibrate,
            background=background,
            report=report,
        )

    def _told(self, tickets: Tickets, *, needed: int) -> dict[str, Any]:
        late = tickets.fell_back
        places = zip(tickets.noise[late], tickets.row[late], tickets.column[late], strict=True)
        blocks = [{"seed": self.seeds[int(n)], "row": int(r), "column": int(c)} for n, r, c in places]
        return {"needed": needed, "winners": int((~late).sum()), "fell_back": blocks}

    def _place(self, concept: str) -> int:
        if concept not in self.concepts:
            near = get_close_matches(concept, self.concepts, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"concept must be one of {', '.join(self.concepts)}, got {concept!r}{hint}")
        return self.concepts.index(concept)

    def _check_collected(self, members: Sequence[int]) -> None:
        known = ~self.scores[..., 0, 0].isnan().all(dim=2)
        for a, b in permutations(members, 2):
            if not known[a, b]:
                raise ValueError(
                    f"scores must be collected for each pair, got none of {self.concepts[a]!r} against "
                    f"{self.concepts[b]!r}: extend the collection"
                )

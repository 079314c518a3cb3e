"""Several pipelines draw one picture together for its first steps, then the first of them goes on alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..noise import Generators, Initializer
from .checks import check_arguments, check_pipelines, check_schedules, check_unguided, size_of
from .member import DrawnOnce, Member
from .paused_call import PausedCall
from .step import PAPER, check_step_sizes, check_weights, combine, correct
from .turns import Adapters, Turns, check_adapters, free_hooks

# what looks on or says how the result is wanted, which is the first model's
OF_THE_FIRST = ("output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
OF_ALL = ("generator", "noise", "num_inference_steps")


class AggregatedPipeline:
    """Aggregates what the other pipelines draw in the first steps into the first one's picture (AMDM).

    In each of the first `steps` steps every model steps on its own, with its own prompt, condition, guidance
    and scheduler; from their aggregate each goes on after a correction towards its own mean. Then the first
    continues alone: of T steps, N models take `steps * N + T - steps` passes through their UNets.
    """

    def __init__(
        self,
        pipelines: Sequence[Any],
        weights: float | Sequence[float] | None = None,
        steps: int = 3,
        step_sizes: Sequence[float] | None = None,
        *,
        kind: str = "nested",
        adapters: Sequence[Adapters] | None = None,
        offload: bool = False,
    ) -> None:
        """Checks that the models belong together; they are shared and left as they are.

        pipelines: two or more text-to-image pipelines of diffusers or of ours, with or without ControlNets,
            on one VAE; their schedulers DDIM or DDPM when called. One may stand there twice.
        weights: one fewer than pipelines, in [0, 1]: the first's own against the second, then both against
            the third. All 1 is the first model's own picture, if its steps draw nothing.
        step_sizes: one a pipeline: how far it is corrected towards its mean, in units of sqrt(d), d the
            number of values of one picture's latents; infinite: up to the mean. Weights and step sizes are
            the paper's if None, for two or three pipelines.
        kind: how latents are combined, see `combine`.
        adapters: for each pipeline the LoRA adapters that are active in its turns: names, or names with
            weights; [] for none, None for those that are active anyway.
        offload: only the model whose turn it is stands on the first one's device, the others on the CPU.
            Modules that hooks of diffusers or accelerate move are left to them.
        Raises ValueError on another number of weights, step sizes or adapters than the pipelines ask for, on
        values out of range, and on pipelines whose latents differ, with both values.
        Source: METHODS 5; AMDM, algorithm 2.
        """
        check_pipelines(pipelines)
        count = len(pipelines)
        if count not in PAPER and (weights is None or step_sizes is None):
            raise ValueError(f"weights and step_sizes must be given for {count} pipelines, got None")
        papers_weights, papers_sizes = PAPER.get(count, ((), ()))
        given = [weights] if isinstance(weights, int | float) else weights
        self.weights = tuple(papers_weights if given is None else given)
        self.step_sizes = tuple(papers_sizes if step_sizes is None else step_sizes)
        if len(self.weights) != count - 1:
            raise ValueError(
                f"weights must be {count - 1}, one fewer than pipelines, got {len(self.weights)}"
            )
        check_weights(self.weights, kind)
        check_step_sizes(self.step_sizes, count)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.pipelines, self.steps, self.kind, self.offload = list(pipelines), steps, kind, offload
        self.adapters = [None] * count if adapters is None else list(adapters)
        check_adapters(self.pipelines, self.adapters)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        calls: Sequence[Mapping[str, Any]] | None = None,
        num_inference_steps: int = 50,
        generator: Generators = None,
        noise: Initializer | None = None,
        **shared: Any,
    ) -> Any:
        """What the first pipeline returns for its call, which the others take part in.

        prompt, shared: arguments of every pipeline's call; how the result is returned and callbacks are the
            first's alone. Height and width are the first's.
        calls: one mapping a pipeline, of arguments that are its own and come before the shared ones.
        generator: all models draw the same initial noise from it; if they draw in their steps (DDPM, eta
            above 0) each draws its own there. The first uses it as if it were alone. None: one with a seed
            from torch's own generator.
        noise: an initializer, asked once for all models, through the first one's network if it refines.
        Raises ValueError on calls that do not fit the pipelines, on schedulers that differ in noise or
        timesteps, on more aggregated than sampled steps, on a pipeline that a layout guides; and whatever a
        pipeline raises, which ends them all.
        """
        check_unguided(self.pipelines)
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
        drawn = None if noise is None else DrawnOnce(noise)
        arguments = self._arguments({"prompt": prompt, **shared}, calls, num_inference_steps, drawn)
        schedulers = check_schedules(self.pipelines, arguments, self.steps)
        members = [
            Member(pipeline, call, scheduler, generator, drawn, place)
            for place, (pipeline, call, scheduler) in enumerate(
                zip(self.pipelines, arguments, schedulers, strict=True)
            )
        ]
        try:
            return self._run(members)
        except torch.OutOfMemoryError as error:
            if self.offload:
                raise
            remedy = "offload=True keeps only the model on the device whose turn it is"
            raise torch.OutOfMemoryError(f"{error}\nAggregatedPipeline: {remedy}") from error

    def _run(self, members: Sequence[Member]) -> Any:
        """The first member's result; the others run where it steps, in their turns."""
        turns = Turns(self.pipelines, self.adapters, offload=self.offload)
        others = [PausedCall(member.run) for member in members[1:]]
        corrected: list[Any] = [None] * len(members)
        taken = 0

        def first_steps(stepped: tuple[Tensor, Tensor]) -> Tensor:
            nonlocal taken
            if taken == self.steps:
                return stepped[0]
            taken += 1
            all_stepped = [stepped]
            for place, other in enumerate(others, 1):
                turns.take(place)
                all_stepped.append(other.advance(corrected[place]))
            corrected[:] = self._aggregate(all_stepped)
            if taken == self.steps:
                _end(others, members[1:])
            turns.take(0)
            return corrected[0]

        try:
            turns.take(0)
            return members[0].run(first_steps)
        finally:
            _end(others, members[1:])
            turns.give_back()
            for member in members:
                member.close()

    def _aggregate(self, stepped: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Where each model goes on, from what each drew and its mean: on its own device, in its dtype."""
        first = stepped[0][0]
        for place, (x, _) in enumerate(stepped[1:], 2):
            if x.shape != first.shape:
                expected, got = tuple(first.shape), tuple(x.shape)
                raise ValueError(
                    f"latents of model {place} must be shaped {expected} as of model 1, got {got}"
                )
        x, means = [
            torch.stack([pair[which].to(first.device, torch.float32) for pair in stepped]) for which in (0, 1)
        ]
        corrected = correct(combine(x, self.weights, self.kind), means, self.step_sizes)
        return [new.to(own.device, own.dtype) for new, (own, _) in zip(corrected, stepped, strict=True)]

    def _arguments(
        self,
        shared: dict[str, Any],
        calls: Sequence[Mapping[str, Any]] | None,
        num_inference_steps: int,
        drawn: DrawnOnce | None,
    ) -> list[dict[str, Any]]:
        """The arguments of each pipeline's call but the generator."""
        if drawn is not None and not hasattr(self.pipelines[0], "start_distribution"):
            kind = type(self.pipelines[0]).__name__
            raise ValueError(f"pipeline of model 1 must be one of onbrand's to take noise, got {kind}")
        calls = [{}] * len(self.pipelines) if calls is None else calls
        if len(calls) != len(self.pipelines):
            raise ValueError(f"calls must be {len(self.pipelines)}, one a pipeline, got {len(calls)}")
        shared = {name: value for name, value in shared.items() if name != "prompt" or value is not None}
        arguments = []
        for place, (pipeline, own) in enumerate(zip(self.pipelines, calls, strict=True)):
            for name in OF_ALL:
                if name in own:
                    raise ValueError(f"{name} must be one for all models, got one in calls[{place}]")
            left_out = OF_THE_FIRST if place else ()
            call = {name: value for name, value in shared.items() if name not in left_out} | dict(own)
            check_arguments(pipeline, call, place + 1)
            arguments.append(call | {"num_inference_steps": num_inference_steps})
        height, width = size_of(self.pipelines[0], arguments[0])
        for place, call in enumerate(arguments, 1):
            for name, side in (("height", height), ("width", width)):
                if call.get(name) not in (None, side):
                    raise ValueError(
                        f"{name} of model {place} must be {side} as of model 1, got {call[name]}"
                    )
                call[name] = side
        return arguments


def _end(others: Sequence[PausedCall], members: Sequence[Member]) -> None:
    for other, member in zip(others, members, strict=True):
        if other.stop():
            free_hooks(member.pipeline)

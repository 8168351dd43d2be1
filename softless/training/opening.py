"""The first lines of a run: its data, its model and machine, its steps and about how long they
take.

The time comes from a few trial steps, forward and backward, of a copy of the model. Weights,
optimiser, averages, buffers, random numbers and the order of the data stay where they were, so a
run with these lines equals one without.
"""

import copy
import sys
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from softless.data.given import name_of
from softless.data.loader import generators_restored
from softless.experiment.recipe import Recipe
from softless.experiment.started import line_of
from softless.models.given import GIVEN
from softless.models.kept import softmax_kept, told
from softless.training.gradients import backward
from softless.training.run import Run
from softless.words import counted, visible

TRIALS = 3
FEWEST = 20  # steps ahead: fewer are done before a trial would pay
PATIENCE = 10.0  # seconds after which no further trial step begins
CLEARLY = 1.5  # times as long: what is said of a number format
FORWARD = 1 / 3  # of a step's time: what the same images take in validation
WORDS = {1: "one trial step", 2: "two trial steps", 3: "three trial steps"}


@dataclass(frozen=True)
class Trial:
    """What a step takes."""

    steps: int  # that were tried
    seconds: float
    cpu_seconds: float  # of all threads
    # forward and backward of one step in the recipe's number format, on a processor
    amp_seconds: float | None = None
    plain_seconds: float | None = None  # and in float32


@dataclass(frozen=True)
class Opening:
    """What a run is about to do; prints as three lines, one where softmax is kept, and one for each
    length that was fitted to the data.
    """

    data: str
    classes: int
    train: int
    val: int
    test: int
    pixels: tuple[int, int]  # height and width of a typical image
    model: str
    parameters: int
    device: str
    processes: int
    threads: int | None  # of each process, where the processor computes
    workers: int  # of each process
    epochs: int
    steps: int  # of an epoch
    done: int  # steps that earlier processes did
    start: str = ""  # what became of weights that it starts from
    trained: int | None = None  # of the parameters, where it is not all
    softmax: str = ""  # where the model keeps softmax beside another operator
    fitted: tuple[str, ...] = ()  # what of the recipe's length was changed to fit the data
    extent: str = ""  # how large the samples are, where they have no pixels
    unit: str = "images"  # what they are called
    # that the steps and validations ahead take, about; None: not tried
    seconds: float | None = None
    cpu_seconds: float | None = None
    trials: int = 0
    slower: str = ""  # a number format that this processor is slow in

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As it is printed, one line for each matter."""
        height, width = self.pixels
        classes = counted(self.classes, "class", "classes") if self.classes else "no classes"
        test = f"{self.test:,} test" if self.test else "no test"
        threads = "" if self.threads is None else f", {counted(self.threads, 'thread')}"
        several = f", {self.processes} processes of" if self.processes > 1 else ","
        total, ahead = self.epochs * self.steps, self.epochs * self.steps - self.done
        remaining = f"; {self.done:,} are done, {ahead:,} ahead" if self.done else ""
        size = f"; {self.extent}" if self.extent else f" at {height} x {width}"
        return [
            (
                f"data     {self.data}: {classes}, {self.train:,} train, {self.val:,} validation, "
                f"{test} {self.unit}{size}"
            ),
            (
                f"model    {self.model}, {self.parameters:,} parameters{several} "
                f"{self.device}{threads}, {counted(self.workers, 'worker')}"
            ),
            *([f"start    {self.start}"] if self.start else []),
            *(
                [f"trained  {self.trained:,} of the parameters, the rest is frozen"]
                if self.trained is not None
                else []
            ),
            *([f"softmax  is kept in {self.softmax}"] if self.softmax else []),
            *(f"fitted   {sentence}" for sentence in self.fitted),
            *([f"numbers  {self.slower}"] if self.slower else []),
            (
                f"steps    {counted(self.epochs, 'epoch')} of {counted(self.steps, 'step')} = "
                f"{total:,}{remaining}{self._time()}"
            ),
        ]

    def _time(self) -> str:
        if self.seconds is None:
            return ""
        cpu = "" if self.cpu_seconds is None else f" ({roughly(self.cpu_seconds)} of CPU time)"
        return (
            f"; about {roughly(self.seconds)}{cpu}, from "
            f"{WORDS.get(self.trials, f'{self.trials} trial steps')}"
        )


def tell(run: Run, *, show: bool) -> None:
    """Say what the run is about to do, on stderr and in state.json; all processes of a run call
    this alike.
    """
    if not show:
        return
    opening = described(run)
    head = opening.lines()[:-1]
    _say(run, head)  # before the trial, which takes its time
    if trial := tried(run):
        opening = with_time(opening, run, trial)
    _say(run, opening.lines()[len(head) :])
    if run.claim is not None:
        run.claim.note("running", opening=opening.to_dict())


def described(run: Run) -> Opening:
    """All but the time."""
    recipe, splits = run.recipe, run.splits
    return Opening(
        data=name_of(recipe.data.path, recipe.data.source),
        classes=len(splits.classes),
        train=len(splits.train),
        val=len(splits.val),
        test=0 if splits.test is None else len(splits.test),
        pixels=run.task.pixels(),
        model=_model_said(recipe),
        parameters=sum(
            parameter.numel() for parameter in run.task.evaluated(run.model).parameters()
        ),
        device=str(run.device),
        processes=run.world.size,
        threads=torch.get_num_threads() if run.device.type == "cpu" else None,
        workers=recipe.data.workers or 0,
        epochs=run.epochs,
        steps=len(run.loader),
        done=run.updates,
        start=line_of(run.recovered),
        trained=_trained(run),
        softmax=told(softmax_kept(run.task.evaluated(run.model))),
        fitted=tuple(run.task.fitted.sentences(len(run.splits.train))),
        extent=run.task.extent(splits.train),
        unit=recipe.unit,
    )


def _trained(run: Run) -> int | None:
    """Numbers that the optimiser moves, where these are not all."""
    parameters = list(run.model.parameters())
    if all(parameter.requires_grad for parameter in parameters):
        return None
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def _model_said(recipe: Recipe) -> str:
    spec = recipe.model
    if spec.name == GIVEN:
        return f"{str(spec.args['class']).rpartition('.')[2]}, built in Python"
    return spec.name if spec.op is None else f"{spec.name} with {spec.op}"


def with_time(opening: Opening, run: Run, trial: Trial) -> Opening:
    """The opening with the time that the steps and validations ahead take, as far as a few steps
    tell.
    """
    ahead = opening.epochs * opening.steps - opening.done
    looks = 2 if run.ema is not None and run.recipe.ema_evaluate else 1
    validated = (
        FORWARD * looks * opening.val / run.recipe.step_images * (opening.epochs - run.epoch)
    )
    values = asdict(opening) | {
        "seconds": trial.seconds * (ahead + validated),
        "cpu_seconds": trial.cpu_seconds * (ahead + validated)
        if run.device.type == "cpu"
        else None,
        "trials": trial.steps,
        "slower": slower(run.recipe.amp, trial),
    }
    return Opening(**values)


def slower(amp: str, trial: Trial) -> str:
    """What is said where a step in float32 is clearly faster, as on processors without instructions
    for bfloat16.
    """
    if (
        trial.amp_seconds is None
        or trial.plain_seconds is None
        or trial.amp_seconds < CLEARLY * trial.plain_seconds
    ):
        return ""
    return (
        f"{amp} is slow here: a step takes {trial.amp_seconds:.2g} s, and "
        f"{trial.plain_seconds:.2g} s in float32 (--amp none)"
    )


def tried(run: Run) -> Trial | None:
    """Time some steps ahead on a copy of the model, or None where few steps are ahead.

    Nothing of the run moves.
    """
    if run.epochs * len(run.loader) - run.updates < FEWEST:
        return None
    devices = [run.device] if run.device.type == "cuda" else []
    with run.rest(), generators_restored(), torch.random.fork_rng(devices=devices):
        learner = run.task.learner(_copied(run.model)).train()
        run.loader.set_epoch(run.epoch, run.step)
        wall: list[float] = []
        cpu: list[float] = []
        began = time.perf_counter()
        # it yields batches
        for positions in islice(iter(run.loader.batch_sampler), TRIALS):  # type: ignore[arg-type]
            start = time.perf_counter(), time.process_time()
            batch = run.loader.collate_fn(run.loader.dataset.__getitems__(positions))  # type: ignore[attr-defined]
            loaded = time.perf_counter() - start[0]
            _step(run, learner, batch, run.recipe.amp)
            computed = time.perf_counter() - start[0] - loaded
            workers = run.recipe.data.workers or 0
            wall.append(max(computed, loaded / workers) if workers else computed + loaded)
            cpu.append(time.process_time() - start[1])
            if not run.world.first(lambda: time.perf_counter() - began < PATIENCE):
                break
        amp = plain = None
        if run.recipe.amp != "none" and run.device.type == "cpu":
            began = time.perf_counter()
            _step(run, learner, batch, "none")
            amp, plain = computed, time.perf_counter() - began
    if devices:
        del learner
        torch.cuda.reset_peak_memory_stats(run.device)
    # the first also sets up what the others use
    warm = slice(1, None) if len(wall) > 1 else slice(None)
    return Trial(
        len(wall), sum(wall[warm]) / len(wall[warm]), sum(cpu[warm]) / len(cpu[warm]), amp, plain
    )


def _copied(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with memory of its own.

    Tensors that a forward pass left in a module (weight norm's) are copied by value.
    """
    tensors = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor)
    ]
    return copy.deepcopy(
        model, {id(value): value.detach().clone() for value in tensors if not value.is_leaf}
    )


def _step(run: Run, learner: torch.nn.Module, batch: Any, amp: str) -> None:
    """Forward and backward as in `loop.train_step`, on a copy."""
    run.seed_step(run.step)
    prepared = run.task.prepare(batch, run.device, epoch=run.epoch, step=run.step)
    learner.zero_grad(set_to_none=True)
    backward(run.task, learner, prepared, parts=run.recipe.accumulate, amp=amp, device=run.device)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


def roughly(seconds: float) -> str:
    """A duration for people.

    >>> [roughly(seconds) for seconds in (0.4, 42, 365, 7800, 400_000)]
    ['1 s', '42 s', '6 min', '2 h 10 min', '4 d 15 h']
    """
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(round(minutes / 60), 24)
    return f"{days} d {rest} h" if rest else f"{days} d"


def _say(run: Run, lines: list[str]) -> None:
    if run.world.is_first:
        sys.stderr.write("".join(f"{visible(line)}\n" for line in lines))
        sys.stderr.flush()

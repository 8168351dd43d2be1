"""Ways to bring an exchanged attention's accuracy back, side by side: what the shipped recovery
does, and what it might do instead.

Judged by images that no step was given: the validation part of the teacher's run. Test images are
told beside it, and nothing is chosen by them.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.kept import answer_in
from lab.recover import (
    EPOCHS,
    Bench,
    Benches,
    agreement,
    calibrate,
    divergence,
    outputs,
    resting,
)
from softless.attention.attend import attend
from softless.attention.registry import registered
from softless.compare.record import record_path, write_csv
from softless.convert.calibrate import branches
from softless.convert.refit.refit import exchanged, refit
from softless.convert.refit.ridge import Moments, solve
from softless.data.progress import track
from softless.errors import UsageError, located, unknown
from softless.layers.attention import Attention
from softless.recovery.distil import distil
from softless.recovery.light import AS_THEY_ARE
from softless.words import table

OPERATORS = ("sima", "seqnorm", "relu_linear", "soft")
TURNED = 4  # copies of an image, the plain one among them
HELD_OUT = 0.15  # of the images of a distillation
MAP_STEPS, MAP_RATE = 80, 3e-3  # of the learned maps
Walk = Callable[[Bench, str], nn.Module]


@dataclass(frozen=True)
class Route:
    """One way from a teacher to a student."""

    name: str
    walk: Walk


@dataclass(frozen=True)
class Walked:
    """What one route comes to, for one teacher and operator."""

    teacher: str
    op: str
    route: str
    held_out_agreement: float  # on the validation images
    held_out_kl: float
    test_agreement: float
    test_share: float  # of the teacher's accuracy
    seconds: float  # of the processor


@dataclass(frozen=True)
class Routes:
    """All of them; those of several teachers as means."""

    walked: tuple[Walked, ...]
    recorded: Path | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The best held-out agreement of each operator first."""
        groups: dict[tuple[str, str], list[Walked]] = {}
        for each in self.walked:
            groups.setdefault((each.op, each.route), []).append(each)
        rows = [
            {
                "op": op,
                "route": route,
                "teachers": len(together),
                **{
                    name: round(float(np.mean([getattr(each, name) for each in together])), 4)
                    for name in NUMBERS
                },
            }
            for (op, route), together in groups.items()
        ]
        order = list(dict.fromkeys(op for op, _ in groups))
        return sorted(
            rows,
            key=lambda row: (
                order.index(row["op"]),
                -row["held_out_agreement"],
                row["held_out_kl"],
            ),
        )

    def to_dict(self) -> list[dict[str, Any]]:
        return self.rows()

    def __str__(self) -> str:
        rows = self.rows()
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return table(list(rows[0]), [list(row.values()) for row in rows]) + footer


NUMBERS = (
    "held_out_agreement",
    "held_out_kl",
    "test_agreement",
    "test_share",
    "seconds",
)


def routes(
    runs: Sequence[str] = (),
    *,
    ops: Sequence[str] = OPERATORS,
    only: Sequence[str] = (),
    out: str | Path = "runs/routes",
    resume: bool = False,
    record: bool = False,
    threads: int = 1,
) -> Routes:
    """Walk every route from trained softmax classifiers, and compare what they come to.

    Args:
        runs: folders of `softless train` with softmax.
        ops: operators.
        only: routes; all by default.
        out: a folder for the answers.
        resume: keep the answers that are there.
        record: also write benchmarks/recover_routes.csv of the repository.
        threads: of the processor, whose seconds are counted.

    Raises:
        UsageError: no runs, an unknown operator or route, a run that is no softmax classifier,
            answers that are there already.
    """
    target = record_path("recover_routes") if record else None
    if not runs:
        raise UsageError("no runs: name folders of `softless train` with model.op=softmax")
    for name in only:
        if name not in ROUTES:
            raise unknown("route", name, ROUTES)
    torch.set_num_threads(threads)
    folder = located(out)
    names = [registered(op).name for op in ops]
    chosen = [route for route in ROUTES.values() if not only or route.name in only]
    planned = [(run, op, route) for run in map(located, runs) for op in names for route in chosen]
    walked: list[Walked] = []
    benches = Benches()
    for run, op, route in track(planned, len(planned), "walking"):
        path = folder / f"{run.parent.name}-{run.name}-{op}-{route.name.replace(' ', '_')}.json"
        measure = partial(_opened_and_walked, benches, run, op, route)
        walked.append(answer_in(path, Walked, measure, resume=resume))
    result = Routes(tuple(walked), target)
    if target is not None:
        write_csv(target, result.rows())
    return result


def _opened_and_walked(benches: Benches, run: Path, op: str, route: Route) -> Walked:
    return _walked(benches.of(run), op, route)


def _walked(bench: Bench, op: str, route: Route) -> Walked:
    start = time.process_time()
    student = route.walk(bench, op)
    seconds = time.process_time() - start
    held_out, test = outputs(student, bench.held_out)[0], outputs(student, bench.test)[0]
    theirs = outputs(bench.teacher, bench.held_out)[0]
    right, right_teacher = (
        float((logits.argmax(1) == bench.labels).double().mean()) for logits in (test, bench.logits)
    )
    return Walked(
        f"{bench.path.parent.name}/{bench.path.name}",
        op,
        route.name,
        agreement(theirs, held_out),
        divergence(theirs, held_out),
        agreement(bench.logits, test),
        right / right_teacher,
        seconds,
    )


def _bare(bench: Bench, op: str) -> nn.Module:
    return bench.student(op)


def _calibrated(bench: Bench, op: str) -> nn.Module:
    student = bench.student(op)
    calibrate(student, bench.teacher, bench.images)
    return student


def _refitted(**changed: Any) -> Walk:
    """The refit with other arguments."""

    def walk(bench: Bench, op: str) -> nn.Module:
        student = bench.student(op)
        refit(student, bench.teacher, bench.images, **changed)
        return student

    return walk


def _twice(bench: Bench, op: str) -> nn.Module:
    student = _refitted()(bench, op)
    refit(student, bench.teacher, bench.images)
    return student


def _turned(**changed: Any) -> Walk:
    """The refit on copies of the same images, turned, shifted and scaled a little."""

    def walk(bench: Bench, op: str) -> nn.Module:
        student = bench.student(op)
        refit(student, bench.teacher, turned(bench.images, TURNED), **changed)
        return student

    return walk


def _on_all(bench: Bench, op: str) -> nn.Module:
    """The refit on all images that the teacher was trained on."""
    student = bench.student(op)
    refit(student, bench.teacher, bench.training_images)
    return student


def turned(images: Tensor, copies: int) -> Tensor:
    """Images (n, C, h, w) and changed copies of them, (n * copies, C, h, w)."""
    generator = torch.Generator().manual_seed(0)
    count = len(images) * (copies - 1)
    angle, scale, right, down = (torch.rand(4, count, generator=generator) * 2 - 1).unbind()
    angle, scale = angle * 0.17, 1 + 0.1 * scale  # of ten degrees
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrices = torch.stack([cos, -sin, 0.16 * right, sin, cos, 0.16 * down], 1).view(-1, 2, 3)
    many = images.repeat(copies - 1, 1, 1, 1)
    grid = nn.functional.affine_grid(matrices, list(many.shape), align_corners=False)
    changed = nn.functional.grid_sample(many, grid, padding_mode="border", align_corners=False)
    return torch.cat([images, changed])


def _kept(*blocks: int) -> Walk:
    """The refit of a hybrid, some of whose blocks keep softmax; from the end where negative."""

    def walk(bench: Bench, op: str) -> nn.Module:
        student = bench.student(op)
        paths = exchanged(student, bench.teacher)
        for block in blocks:
            student.set_submodule(
                paths[block], copy.deepcopy(bench.teacher.get_submodule(paths[block]))
            )
        refit(student, bench.teacher, bench.images)
        return student

    return walk


def _with_values(bench: Bench, op: str) -> nn.Module:
    student = bench.student(op)
    fit_values(student, bench.teacher, bench.images)
    refit(student, bench.teacher, bench.images)
    return student


@torch.no_grad()
def fit_values(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Values by least squares: y = sum_h A_h X M_h, each M_h (C, C) cut to the head's width.

    A_h are the student's weights on what the teacher's attention is given, y what that one answers.
    The projection is left to the refit.
    """
    for path, call in branches(
        teacher, exchanged(student, teacher), images, resting(teacher)
    ).items():
        module = student.get_submodule(path)
        assert isinstance(module, Attention)
        x = call.args[0]
        student(images[:1])  # tells the grid
        q, k, _ = module.project(x)
        alike = x[:, None].expand(-1, module.num_heads, -1, -1).contiguous()
        seen = attend(q, k, alike, op=module.op, **module.extras(x.shape[1]))
        rows = seen.transpose(1, 2).flatten(2).flatten(0, 1)  # (tokens, heads * C)
        goal = call.out.flatten(0, 1)
        cut = len(rows) // 4
        sums = [Moments.zeros(rows.shape[1], goal.shape[1], rows.device) for _ in range(2)]
        for moments, part in zip(sums, (slice(cut, None), slice(0, cut)), strict=True):
            moments.add(rows[part], goal[part], torch.ones(len(rows[part])))
        W0 = torch.zeros(goal.shape[1], rows.shape[1], dtype=torch.float64)
        important = torch.ones(goal.shape[1], dtype=torch.float64)
        W = solve(sums[0], sums[1], W0, W0[:, 0], important=important).W.T.unflatten(
            0, (module.num_heads, -1)
        )
        covariance = (sums[0].oo + sums[1].oo) / len(rows)
        _write_values(module, W, covariance)


def _write_values(module: Attention, W: Tensor, covariance: Tensor) -> None:
    """The head's width of each map (H, C, C) that loses least on inputs of a covariance."""
    projection = module.get_submodule("".join(module.parts))
    assert isinstance(projection, nn.Linear)
    width, channels = module.head_dim, W.shape[1]
    first = (len(module.parts) - 1) * module.num_heads * width
    for head, mapped in enumerate(W):
        own = slice(head * channels, (head + 1) * channels)
        values, vectors = torch.linalg.eigh(covariance[own, own])
        root = values.clamp_min(1e-9 * float(values.max())).sqrt()
        left, _, _ = torch.linalg.svd((vectors * root) @ vectors.T @ mapped, full_matrices=False)
        rows = ((vectors / root) @ vectors.T @ left[:, :width]).T
        start = first + head * width
        projection.weight[start : start + width] = rows.to(projection.weight)
        if projection.bias is not None:
            projection.bias[start : start + width] = 0


def _with_maps(bench: Bench, op: str) -> nn.Module:
    student = bench.student(op)
    learn_maps(student, bench.teacher, bench.images)
    refit(student, bench.teacher, bench.images)
    return student


def learn_maps(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Maps D x D of each head's q and k that bring the branch nearest to the teacher's, by
    gradient, folded into their projection.
    """
    paths = exchanged(student, teacher)
    calls = branches(teacher, paths, images, resting(teacher))
    with torch.no_grad():
        student(images[:1])  # tells the grid
    for path in paths:
        module = student.get_submodule(path)
        assert isinstance(module, Attention)
        projection = module.get_submodule("".join(module.parts))
        assert isinstance(projection, nn.Linear)
        tied, (x, goal) = len(module.parts) == 2, (calls[path].args[0], calls[path].out)
        maps = torch.eye(module.head_dim).repeat(2 - tied, module.num_heads, 1, 1)
        gain, bias = torch.ones(()), goal.mean((0, 1))
        learned = [tensor.requires_grad_() for tensor in (maps, gain, bias)]
        optimizer = torch.optim.Adam(learned, MAP_RATE)
        generator = torch.Generator().manual_seed(0)
        name = "".join(module.parts)
        for _ in range(MAP_STEPS):
            drawn = torch.randperm(len(x), generator=generator)[:64]
            changed = {
                f"{name}.weight": _mapped(projection.weight.detach(), maps),
                f"{name}.bias": _mapped(projection.bias.detach()[:, None], maps)[:, 0],
            }
            answered = torch.func.functional_call(module, changed, (x[drawn],))
            answered = answered - answered.mean((0, 1))
            missing = gain * answered + bias - goal[drawn]
            loss = missing.square().mean() / goal.var()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            projection.weight.copy_(_mapped(projection.weight, maps))
            projection.bias.copy_(_mapped(projection.bias[:, None], maps)[:, 0])


def _mapped(weight: Tensor, maps: Tensor) -> Tensor:
    """A projection (parts * H * D, C) with its first parts multiplied by maps (parts, H, D, D)."""
    parts, heads, width, _ = maps.shape
    own = parts * heads * width
    turned_rows = maps @ weight[:own].view(parts, heads, width, -1)
    return torch.cat([turned_rows.reshape(own, -1), weight[own:]])


def _distilled(ahead: Walk, **changed: Any) -> Walk:
    """A route, and the teacher's answers behind it."""

    def walk(bench: Bench, op: str) -> nn.Module:
        student = ahead(bench, op)
        with tempfile.TemporaryDirectory() as folder:
            arguments = {"epochs": EPOCHS, "min_steps": None, "held_out": HELD_OUT, **changed}
            distil(
                student,
                bench.teacher,
                bench.training_images,
                out=Path(folder) / "run",
                progress=False,
                **arguments,
            )
        return student.eval()

    return walk


def _then_refitted(ahead: Walk) -> Walk:
    def walk(bench: Bench, op: str) -> nn.Module:
        student = ahead(bench, op)
        refit(student, bench.teacher, bench.images)
        return student

    return walk


def _paper_scale(bench: Bench, op: str) -> nn.Module:
    """The refit of SimA in the paper's scale; of others as ever."""
    student = bench.student(op, **({"token_scale": None} if op == "sima" else {}))
    refit(student, bench.teacher, bench.images)
    return student


REFIT = _refitted()
STRONG = _refitted(ridge=0.1)
COPIES = _turned()
ROUTES: Mapping[str, Route] = {
    name: Route(name, walk)
    for name, walk in {
        "bare": _bare,
        "gains of heads": _calibrated,
        "refit": REFIT,
        "refit, class token 1": _refitted(class_weight=1.0),
        "refit, class token as all patches": _refitted(class_weight=16.0),
        "refit, fixed ridge 1e-3": _refitted(ridge=1e-3),
        "refit, fixed ridge 0.1": STRONG,
        "refit, projections alone": _refitted(refit_mlp=False),
        "refit, half held out": _refitted(held_out=0.5),
        "refit, held out not used": _refitted(on_all=False),
        "refit twice": _twice,
        "refit, 4 turned copies": COPIES,
        "refit, 4 turned copies, class token as all patches": _turned(class_weight=16.0),
        "refit, values first": _with_values,
        "refit, learned maps first": _with_maps,
        "refit, first block softmax": _kept(0),
        "refit, last block softmax": _kept(-1),
        "refit, two blocks softmax": _kept(0, -1),
        "distil": _distilled(_bare),
        "refit, distil": _distilled(REFIT),
        "refit, distil 1e-4": _distilled(REFIT, lr=1e-4),
        "refit, distil 3e-5": _distilled(REFIT, lr=3e-5),
        "ridge 0.1, distil": _distilled(STRONG),
        "ridge 0.01, distil": _distilled(_refitted(ridge=0.01)),
        "turned copies, distil": _distilled(COPIES),
        "turned copies, distil 2e-4": _distilled(COPIES, lr=2e-4),
        "turned copies, ridge 0.01, distil": _distilled(_turned(ridge=0.01)),
        "turned copies, distil 1e-4": _distilled(COPIES, lr=1e-4),
        "refit, distil attention": _distilled(REFIT, only="attention"),
        "refit, distil LoRA": _distilled(REFIT, only="lora", lr=2e-3),
        "refit, distil, refit": _then_refitted(_distilled(REFIT, lr=1e-4)),
        "refit on all images": _on_all,
        "refit on all images, distil plain 3e-5": _distilled(_on_all, lr=3e-5, augment=AS_THEY_ARE),
        "paper's scale, refit": _paper_scale,
        "paper's scale, refit, distil 1e-4": _distilled(_paper_scale, lr=1e-4),
    }.items()
}

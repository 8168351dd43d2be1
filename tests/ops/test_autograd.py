"""torch's ways of differentiating and mapping: right, or one sentence, for every operator and
backend; and the backend of a whole model.
"""

import threading
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import softless
from lab.__main__ import run
from lab.autograd import BAR, TRANSFORMS, Problem, autograd, judged, measured
from lab.inputs import Call
from softless import BackendRefused, UsageError
from softless.attention import OPERATORS, attend_packed, attend_projected
from softless.attention.choice import asked_for
from softless.attention.kernels import native
from tests.models.lively import lively
from tests.ops.draw import assert_near, attend, draw, every

NATIVE = ("sima", "sima_l2", "sima_none", "seqnorm")
create_model: Any = softless.create_model
attend_any: Any = softless.attend  # untyped, so that q, k and v can be passed as one
needs_native = pytest.mark.skipif(native.LIBRARY is None, reason=native.WHY_NOT)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@every
def test_every_transform_is_right_or_refused(op: Any, transform: str) -> None:
    """Nothing wrong; where no backend is named it is right, but for second derivatives of torch's
    fused softmax.
    """
    found = {cell.backend: cell for cell in measured(transform, op)}
    assert not [cell for cell in found.values() if cell.outcome == "wrong"]
    fused = op.name == "softmax" and transform in {"double backward", "gradgradcheck"}
    assert (
        found["auto"].outcome
        == found["eager" if "eager" in found else "reference"].outcome
        == ("refused" if fused else "right")
    )
    assert found["reference"].outcome == "right"
    assert all(
        cell.why and "\n" not in cell.why for cell in found.values() if cell.outcome == "refused"
    )


def test_what_a_transform_drops_is_wrong() -> None:
    """The controls: a zero, an answer beside the truth, and an error that is no sentence are
    seen.
    """
    truth = [torch.ones(3)]

    def crash(*_: Any) -> Any:
        raise RuntimeError("element 0 of tensors does not require grad")

    def dropped(*_: Any) -> Any:
        return [torch.zeros(3)], truth

    def beside(*_: Any) -> Any:
        return [torch.ones(3) * (1 + 2 * BAR)], truth

    for wrong in (crash, dropped, beside):
        assert judged(wrong, OPERATORS["sima"], "auto")[0] == "wrong"
    assert judged(lambda *_: (truth, truth), OPERATORS["sima"], "auto")[0] == "right"


# without performer's parity=True: its epsilon makes the value hang on a maximum that the published
# code takes for a constant
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("soft", {"inverse": "newton"}),
    ("soft", {"sampling": "pool"}),
    ("softnorm", {"inverse": "newton"}),
    ("performer", {"kind": "relu"}),
    ("nystrom", {"pooling": "grid"}),
    ("nystrom", {"parity": True}),
    ("sima", {"token_scale": "tokens"}),
    ("sima", {"order": "tokens"}),
    ("sima", {"token_scale": 7}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("transform", ["forward mode", "forward over reverse", "double backward"])
def test_options_do_not_change_that(
    name: str, options: dict[str, Any], transform: str, monkeypatch: Any
) -> None:
    def with_options(cls: Any, record: Any, backend: str, seed: int = 0) -> Problem:
        call, extras = draw(record, (1, 1, 24, 24, 4, 4), torch.float64, seed)
        extras |= options | ({"grid": (0, 4, 6)} if options.get("pooling") == "grid" else {})
        made = Call(record, *call, extras)
        names = list(made.leaves)

        def f(backend: str, dtype: torch.dtype) -> Any:
            kept = made.extras.get("learned", {})
            told = replace(
                made,
                extras={
                    **made.extras,
                    **({"learned": {n: x.to(dtype) for n, x in kept.items()}} if kept else {}),
                },
            )
            return lambda *leaves: told.with_leaves(**dict(zip(names, leaves, strict=True))).run(
                backend=backend
            )

        at = tuple(x.float() for x in made.leaves.values())
        generator = torch.Generator().manual_seed(5)
        along = tuple(torch.randn(x.shape, generator=generator) for x in at)
        return Problem(f(backend, torch.float32), f("reference", torch.float64), at, along)

    monkeypatch.setattr(Problem, "of", classmethod(with_options))
    assert [cell for cell in measured(transform, OPERATORS[name]) if cell.outcome == "wrong"] == []


def test_the_published_inverse_has_a_second_derivative() -> None:
    """It was taken for a constant: its own derivative is that of the inverse that was reached."""
    (q, _, v), extras = draw(OPERATORS["soft"], (1, 1, 12, 12, 4, 4))
    extras |= {"parity": True}
    leaves = [x.clone().requires_grad_() for x in (q, v)]

    def f(q: Tensor, v: Tensor) -> Tensor:
        return attend(q, q, v, op="soft", backend="reference", **extras).square().sum()

    first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    total = torch.stack([g.square().sum() for g in first]).sum()
    assert all(bool(x.abs().sum() > 0) for x in torch.autograd.grad(total, leaves))


# The native kernels


@needs_native
@pytest.mark.parametrize("op", NATIVE)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_second_derivatives_of_native_kernels(op: str, masked: bool) -> None:
    """Of q, k and v, of the packed buffer, and of both projections: as eager's."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    def second(value: Any, leaves: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(value(*leaves).square().sum(), leaves, create_graph=True)
        return list(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)
        )

    masks: Any = {"mask": torch.rand(2, 128, generator=generator) > 0.3} if masked else {}
    qkv = [random(2, 2, 128, 8) for _ in range(3)]
    both: Any = {**masks, **({"query_mask": masks["mask"]} if masked else {})}
    if op == "seqnorm":
        with pytest.raises(BackendRefused, match="has no gradients"):
            attend_any(*qkv, op=op, backend="native")
        return
    native_, eager = (
        second(lambda *x, b=b: attend_any(*x, op=op, backend=b, **both), qkv)
        for b in ("native", "eager")
    )
    for ours, theirs in zip(native_, eager, strict=True):
        assert_near(ours, theirs, 1e-5)
    buffer = [random(2, 128, 48)]
    found = [
        second(lambda x, b=b: attend_packed(x, 2, op, backend=b, **masks), buffer)
        for b in ("native", "eager")
    ]
    assert_near(found[0][0], found[1][0], 1e-5)
    if masked:
        return
    leaves = [random(2, 128, 16), random(48, 16), random(48), random(16, 16), random(16)]

    def inside(x: Tensor, w: Tensor, b: Tensor, p: Tensor, c: Tensor) -> Any:
        return attend_projected(x, (w, b), (p, c), 2, op)

    def apart(x: Tensor, w: Tensor, b: Tensor, p: Tensor, c: Tensor) -> Tensor:
        linear = torch.nn.functional.linear
        return linear(attend_packed(linear(x, w, b), 2, op, backend="eager"), p, c)

    for ours, theirs in zip(second(inside, leaves), second(apart, leaves), strict=True):
        assert_near(ours, theirs, 1e-4)


@needs_native
@pytest.mark.parametrize("op", NATIVE)
def test_native_by_name_says_why_not(op: str) -> None:
    q, k, v = (torch.randn(1, 2, 128, 8) for _ in range(3))

    def run(v: Tensor) -> Tensor:
        return softless.attend(q, k, v, op=op, backend="native")

    with torch.no_grad():
        run(v)
    for what, call in (
        ("torch.func", lambda: torch.func.jvp(run, (v,), (v,))),
        ("torch.func", lambda: torch.func.vmap(run)(v[None])),
    ):
        with pytest.raises(BackendRefused, match=f"{what} is active.*reverse-mode gradients alone"):
            call()
    with (
        forward_ad.dual_level(),
        pytest.raises(BackendRefused, match="forward-mode differentiation is active"),
    ):
        run(forward_ad.make_dual(v, v))


@needs_native
def test_a_plan_that_is_remembered_is_not_taken_into_a_transform() -> None:
    """The short way over few tokens remembers a backend by shapes: a transform is part of what it
    remembers by.
    """
    qkv = torch.randn(1, 128, 48)
    attend_packed(qkv, 2)
    ahead = torch.func.jvp(lambda x: attend_packed(x, 2), (qkv,), (qkv,))[1]
    wide = qkv.double()
    truth = (attend_packed(wide * (1 + 1e-6), 2) - attend_packed(wide * (1 - 1e-6), 2)) / 2e-6
    assert_near(ahead, truth, 1e-5)


def test_transforms_inside_a_compiled_graph() -> None:
    q, k, v = (torch.randn(1, 2, 128, 8) for _ in range(3))

    def value(v: Tensor) -> Tensor:
        return softless.attend(q, k, v)

    def loss(v: Tensor) -> Tensor:
        return value(v).square().sum()

    ways: dict[str, Any] = {
        "jvp": lambda v: torch.func.jvp(value, (v,), (v,))[1],
        "grad": torch.func.grad(loss),
        "vmap": lambda v: torch.func.vmap(value)(v[None]),
    }
    for name, way in ways.items():
        compiled: Any = torch.compile(way, backend="aot_eager", fullgraph=True)
        assert_near(compiled(v), way(v), 1e-6, name)


# Models


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize("host", ["deit_tiny_patch16_224", "xcit_nano_12_p16_224"])
def test_models(host: str) -> None:
    """jvp by differences, grad and jacrev by plain gradients, products with the Hessian by
    differences of gradients.
    """
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    model = lively(
        create_model(host, op="sima", depth=1, embed_dim=48, num_heads=3, num_classes=3), x
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    t = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    wide = (
        create_model(host, op="sima", depth=1, embed_dim=48, num_heads=3, num_classes=3)
        .double()
        .eval()
    )
    wide.load_state_dict(model.state_dict())
    a, b = (wide(x.double() + h * t.double()) for h in (1e-5, -1e-5))
    assert_near(torch.func.jvp(model, (x,), (t,))[1], (a - b) / 2e-5, 1e-3)

    def gradient(model: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(model(x).square().sum(), x)[0]

    assert_near(
        torch.func.grad(lambda x: model(x).square().sum())(x), gradient(wide, x.double()), 1e-3
    )
    jacobian = torch.func.jacrev(model)(x)
    for row in range(3):
        leaf = x.clone().requires_grad_()
        assert_near(jacobian[0, row], torch.autograd.grad(model(leaf)[0, row], leaf)[0], 1e-4)
    curved = torch.autograd.functional.hvp(lambda x: model(x).square().sum(), x, t)[1]
    a, b = (gradient(wide, x.double() + h * t.double()) for h in (1e-5, -1e-5))
    assert_near(curved, (a - b) / 2e-5, 5e-3)


def test_an_optimized_model_says_that_it_has_none() -> None:
    x = torch.randn(1, 3, 32, 32)
    fast = softless.optimize(
        create_model("sima_deit_tiny_patch16_224", depth=1, num_classes=3), dtype=torch.float32
    )
    sentence = "an optimized model has no gradients: take them of the model it was made of"
    for call in (
        lambda: torch.func.jvp(fast, (x,), (x,)),
        lambda: torch.func.vmap(fast)(x[None]),
        lambda: torch.func.jvp(fast.forward_features, (x,), (x,)),
    ):
        with pytest.raises(UsageError, match=sentence):
            call()
    assert fast(x).shape == (1, 3)


# The backend of a whole model


def nodes(model: Any, x: Tensor) -> set[str]:
    """The operators of ours that a pass calls."""
    found: set[str] = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.namespace == "softless":
                found.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        model(x)
    return found


@needs_native
def test_use_backend_for_a_whole_model() -> None:
    """As a context and as a call, in this thread alone; nested, and put back after an error."""
    x = torch.randn(1, 3, 224, 224)
    model = create_model("sima_deit_tiny_patch16_224", depth=2, num_classes=3).eval()
    assert nodes(model, x) == {"attend_packed"}
    with softless.use_backend("eager"):
        assert nodes(model, x) == set()
        with softless.use_backend("native"):
            assert nodes(model, x) == {"attend_packed"}
        assert asked_for() == "eager"
        elsewhere: list[Any] = []
        thread = threading.Thread(target=lambda: elsewhere.append((asked_for(), nodes(model, x))))
        thread.start()
        thread.join()
        assert elsewhere == [("auto", {"attend_packed"})]
    with pytest.raises(ZeroDivisionError), softless.use_backend("reference"):
        1 / 0  # noqa: B018
    assert nodes(model, x) == {"attend_packed"}
    try:
        softless.use_backend("reference")
        assert nodes(model, x) == set()
    finally:
        softless.use_backend("auto")
    assert nodes(model, x) == {"attend_packed"}


def test_use_backend_refuses_what_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"no backend named 'eagr'. Did you mean 'eager'"):
        softless.use_backend("eagr")
    q = torch.randn(1, 2, 9, 8)
    with (
        softless.use_backend("native"),
        pytest.raises(BackendRefused, match="'softmax' has no backend 'native'"),
    ):
        softless.attend(q, q, q, op="softmax")
    with softless.use_backend("native"):
        assert softless.attend(q, q, q, op="softmax", backend="eager").shape == q.shape, (
            "a call that names one keeps it"
        )
    assert "use_backend" in softless.__all__


@needs_native
def test_use_backend_in_compiled_graphs() -> None:
    """A graph is compiled anew for another backend, and the first one is taken again."""
    ran: list[bool] = []

    def noting(graph: Any, _: Any) -> Any:
        ours = any("softless" in str(node.target) for node in graph.graph.nodes)

        def run(*args: Any) -> Any:
            ran.append(ours)
            return graph.forward(*args)

        return run

    q, k, v = (torch.randn(1, 2, 128, 8) for _ in range(3))
    run: Any = torch.compile(softless.attend, backend=noting, fullgraph=True)
    run(q, k, v)
    with softless.use_backend("eager"):
        run(q, k, v)
    run(q, k, v)
    assert ran == [True, False, True]


def test_the_table_counts_and_is_a_command(capsys: Any) -> None:
    from softless.cli.main import main

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["autograd", "--ops", "xca"], run=run) == 0
        found = autograd(["jvp", "vmap"], ops=["sima"])
    assert "functional_call" in capsys.readouterr().out
    assert {name: sum(row.values()) for name, row in found.counts.items()} == {"jvp": 4, "vmap": 4}
    assert found.exit_code == 0

"""Meters of what a record says of its reference.

Each measures in both directions: a false «no» fails like a false «yes».
"""

# B batch, H heads, N queries, M keys, D features of q and k, E features of v

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softless.attention.chunks import implied_matrix
from softless.attention.norms import TokenNorm
from softless.attention.options import Sizes
from softless.attention.record import Operator
from softless.attention.samples import dims_of, draw
from softless.errors import UsageError
from softless.layers.masks import token_mask
from softless.measure.exps import TranscendentalCounter
from softless.measure.flops import FlopCounter
from softless.testing.comparing import CROSS, SHAPES, error, exact, reference, run, shapes_of
from softless.testing.faults import Fault

NEAR = 1e-9  # in float64: below this two answers are one
FLOOR = 1e-30  # of a sum that is divided by, where an option sets it
MOST = 0.9  # of the rows, that a usual call lets through
COST_SHAPE = (2, 2, 200, 200, 8, 8)


def reference_has_gradients(op: Operator) -> Iterator[Fault]:
    """`gradcheck` of the reference in float64, learned tensors included."""
    for shape in ((1, 2, 1, 1, 4, 4), (1, 2, 7, 7, 4, 4)):
        call, extras = draw(op, shape)
        learned = {key: x.requires_grad_() for key, x in extras.get("learned", {}).items()}

        def at(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            *own: Tensor,
            extras: Any = extras,
            learned: Any = learned,
        ) -> Tensor:
            named = {"learned": dict(zip(learned, own, strict=True))} if learned else {}
            return reference(op, q, k, v, **{**extras, **named})

        inputs = [x.requires_grad_() for x in call]
        try:
            torch.autograd.gradcheck(at, (*inputs, *learned.values()), atol=1e-8, rtol=1e-6)
        except RuntimeError as wrong:
            yield Fault(
                "reference",
                "a formula with its gradient",
                f"gradcheck: {' '.join(str(wrong).split())[:200]}",
                "write it in operations of torch that have gradients, without casts and in-place "
                "changes",
            )


def limits(op: Operator) -> Iterator[Fault]:
    """Calls of usual sizes with default options have an answer."""
    for shape in shapes_of(op).values():
        call, extras = draw(op, shape)
        why = op.limits(dims_of(op, call, extras), **{**op.filled({}), **extras})
        if why is not None:
            yield Fault(
                "claims.limits",
                f"no answer for (B, H, N, M, D, E) = {shape}",
                f"the reference has one; it said: {why}",
                "refuse less",
            )


def flops(op: Operator) -> Iterator[Fault]:
    """FLOPs of matrix products as PyTorch counts them."""
    for shape in (*shapes_of(op).values(), COST_SHAPE):
        call, extras = draw(op, shape)
        with FlopCounter() as counter:
            op.reference(*call, **extras)
        claimed = op.flops(dims_of(op, call, extras))
        if counter.total != claimed:
            yield Fault(
                "claims.flops",
                f"{claimed:,} FLOPs for (B, H, N, M, D, E) = {shape}",
                f"{counter.total:,}",
                "mend the formula",
            )


def exps(op: Operator) -> Iterator[Fault]:
    """Transcendental evaluations, element by element."""
    for shape in shapes_of(op).values():
        call, extras = draw(op, shape, torch.float32)
        claimed = op.exps(dims_of(op, call, extras))
        for backend in ("reference", "eager"):
            with TranscendentalCounter() as counter:
                run(op, call, backend=backend, **extras)
            counted = sum(counter.kinds.values())
            if counted != claimed:
                yield Fault(
                    "claims.exps",
                    f"{claimed:,} for (B, H, N, M, D, E) = {shape}",
                    f"{counted:,} by {backend}",
                    "mend the formula",
                )


def growth(op: Operator) -> Iterator[Fault]:
    """Work, and the largest tensor kept for the backward pass, at N and 4 N tokens."""
    sizes = []
    for tokens in (128, 512):
        call, extras = draw(op, (1, 2, tokens, tokens, 8, 8), windows=8)
        saved = [0]

        def pack(x: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(x.numel())
            return x

        with FlopCounter() as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            op.reference(*(x.requires_grad_() for x in call), **extras)
        sizes.append((counter.total, max(saved)))
    powers = [math.log(larger / max(1, smaller), 4) for smaller, larger in zip(*sizes, strict=True)]
    claimed = {"N": 1, "N^2": 2}.get(op.growth)
    if claimed is None:
        yield Fault(
            "claims.growth", repr(op.growth), "it is neither 'N' nor 'N^2'", "write one of them"
        )
    elif [round(power) for power in powers] != [claimed] * 2:
        yield Fault(
            "claims.growth",
            op.growth,
            f"work grows as N^{powers[0]:.1f}, memory as N^{powers[1]:.1f}",
            f"set growth='{'N' if max(powers) < 1.5 else 'N^2'}'",
        )


def _gives_ones(op: Operator) -> bool:
    """Whether v = 1 gives 1 in every row but for the floor that keeps it from dividing by nothing,
    or 0 where no feature lets a query through.
    """
    floor = {"eps": FLOOR} if "eps" in op.options else {}
    for shape in (SHAPES["square"], SHAPES["63"]):
        (q, k, v), extras = draw(op, shape)
        o = op.reference(q, k, torch.ones_like(v), **{**extras, **floor})
        through = o != 0
        if not bool(((o - 1)[through].abs() < NEAR).all()) or through.double().mean() <= MOST:
            return False
    return True


def _scaled(op: Operator, side: str, shape: str = "square") -> float:
    """How far a positive factor on each channel of q or k moves the output."""
    (q, k, v), extras = draw(op, SHAPES[shape])
    factors = (
        torch.rand(q.shape[-1], dtype=q.dtype, generator=torch.Generator().manual_seed(3)) * 10
        + 0.1
    )
    tied = op.wants("tied_qk", {})
    scaled = (q * factors, k) if side == "q" else (q, k * factors)
    if tied:
        scaled = (q * factors, q * factors)
    return error(op.reference(*scaled, v, **extras), op.reference(q, k, v, **extras))


def normalises(op: Operator) -> Iterator[Fault]:
    """With "rows" v = 1 gives 1; with "tokens" factors on channels of q and k fall out, but for a
    floor; else "nothing".
    """
    tokens = max(_scaled(op, side) for side in "qk") < 1e-2
    normalised = "rows" if _gives_ones(op) else "tokens" if tokens else "nothing"
    if normalised != op.normalises:
        yield Fault(
            "claims.normalises",
            repr(op.normalises),
            repr(normalised),
            f"set normalises='{normalised}'",
        )


def scale_free(op: Operator) -> Iterator[Fault]:
    """A positive factor on a channel of q or of k changes nothing."""
    moved = max(_scaled(op, side) for side in "qk")
    if (moved < NEAR) != op.scale_free:
        yield Fault(
            "claims.scale_free",
            str(op.scale_free),
            f"factors on the channels move the output by {moved:.1e}",
            f"set scale_free={not op.scale_free}",
        )


def equivariant(op: Operator) -> Iterator[Fault]:
    """Permuting the tokens permutes the output."""
    (q, k, v), extras = draw(op, SHAPES["square"])
    order = torch.randperm(q.shape[-2], generator=torch.Generator().manual_seed(1))
    moved = op.reference(*(x[..., order, :] for x in (q, k, v)), **extras)
    apart = error(moved, op.reference(q, k, v, **extras)[..., order, :])
    if (apart < NEAR) != op.equivariant:
        yield Fault(
            "claims.equivariant",
            str(op.equivariant),
            f"permuted tokens give another output by {apart:.1e}",
            f"set equivariant={not op.equivariant}",
        )


def _matrix(op: Operator) -> tuple[Tensor, float]:
    """What v = identity gives, and how far its product with v is from the output."""
    (q, k, v), extras = draw(op, (1, 2, 8, 8, 8, 8))
    eye = torch.eye(8, dtype=v.dtype).expand(1, 2, -1, -1)
    matrix = op.reference(q, k, eye, **extras)
    return matrix, error(matrix @ v, op.reference(q, k, v, **extras))


def has_implied_matrix(op: Operator) -> Iterator[Fault]:
    """o = A(q, k) v with the A that v = identity gives."""
    matrix, apart = _matrix(op)
    if (apart < NEAR) != op.implied_matrix:
        yield Fault(
            "claims.implied_matrix",
            str(op.implied_matrix),
            f"A(q, k) v misses the output by {apart:.1e}",
            f"set implied_matrix={not op.implied_matrix}",
        )
        return
    (q, k, _), extras = draw(op, (1, 2, 8, 8, 8, 8))
    if not op.implied_matrix:
        try:
            implied_matrix(q, k, op, **extras)
        except UsageError:
            return
        yield Fault(
            "claims.implied_matrix", "False", "implied_matrix gives one", "set implied_matrix=True"
        )
    elif error(implied_matrix(q, k, op, **extras), matrix) > 1e-9:
        yield Fault(
            "own",
            "the same matrix by every backend",
            "implied_matrix differs from the reference",
            "mend the first backend",
        )


def linear_in_v(op: Operator) -> Iterator[Fault]:
    """A factor on v is a factor on the output, and the output of a sum of v is the sum of
    outputs.
    """
    (q, k, v), extras = draw(op, SHAPES["square"])
    v_flipped = v.flip(-2)
    combined = op.reference(q, k, 4 * v + v_flipped, **extras)
    apart = error(
        combined, 4 * op.reference(q, k, v, **extras) + op.reference(q, k, v_flipped, **extras)
    )
    if (apart < NEAR) != op.linear_in_v:
        yield Fault(
            "claims.linear_in_v",
            str(op.linear_in_v),
            f"a combination of two v misses that of their outputs by {apart:.1e}",
            f"set linear_in_v={not op.linear_in_v}",
        )


def cross(op: Operator) -> Iterator[Fault]:
    """The reference takes another number of queries than keys, and a v of another width, exactly if
    the record says so.
    """
    call, extras = draw(op, CROSS["fewer queries"])
    try:
        op.reference(*call, **extras)
        takes = True
    except (RuntimeError, UsageError):
        takes = False
    if takes != op.cross:
        behaviour = (
            "takes 7 queries over 40 keys" if takes else "does not take 7 queries over 40 keys"
        )
        yield Fault(
            "claims.cross", str(op.cross), f"the reference {behaviour}", f"set cross={takes}"
        )
    elif not takes and not _refused(op, call, extras):
        yield Fault(
            "claims.cross", "False", "attend takes 7 queries over 40 keys", "set cross=True"
        )


def _refused(op: Operator, call: Any, extras: dict[str, Any]) -> bool:
    """Whether `attend` says in a sentence that it does not take this call."""
    try:
        run(op, call, **extras)
    except UsageError:
        return True
    return False


def masks(op: Operator) -> Iterator[Fault]:
    """Pairwise and causal masks are honoured or refused, never ignored."""
    if (
        not isinstance(op.masks, tuple)
        or "token" not in op.masks
        or set(op.masks) - {"token", "pairwise", "causal"}
    ):
        yield Fault(
            "claims.masks",
            repr(op.masks),
            "every operator takes token masks; 'pairwise' and 'causal' are the others",
            "set masks=('token',)",
        )
        return
    x = torch.zeros(2, 5, 8)
    ragged = torch.ones(5, 5, dtype=torch.bool).tril()
    call, extras = draw(op, (1, 2, 5, 5, 4, 4))
    for kind, arguments in {"pairwise": (ragged, False), "causal": (None, True)}.items():
        takes = kind in op.options
        if takes != (kind in op.masks):
            yield Fault(
                "claims.masks",
                repr(op.masks),
                f"{'an' if takes else 'no'} option '{kind}'",
                f"{'add' if takes else 'take out'} '{kind}'",
            )
        elif takes:
            _, mask_options = token_mask(op, x, *arguments, None)
            first = op.reference(*(x[..., :1, :] for x in call), **extras)
            apart = error(run(op, call, **extras, **mask_options)[..., :1, :], first)
            if apart > NEAR:
                yield Fault(
                    "claims.masks",
                    repr(op.masks),
                    f"a first query that sees itself alone is off by {apart:.1e}",
                    f"take out '{kind}'",
                )


def drops_weights(op: Operator) -> Iterator[Fault]:
    """`dropout` changes the output, exactly if the operator has weights to drop."""
    takes = "dropout" in op.options
    if takes:
        call, extras = draw(op, SHAPES["square"])
        takes = error(run(op, call, dropout=0.5, **extras), run(op, call, **extras)) > 0.1
    if takes != op.drops_weights:
        yield Fault(
            "claims.drops_weights",
            str(op.drops_weights),
            f"dropout {'acts' if takes else 'does not act'}",
            f"set drops_weights={takes}, with an option 'dropout' where it is True",
        )


def resolution(op: Operator) -> Iterator[Fault]:
    """Other numbers of tokens than those the tensors were made for: served, or refused in a
    sentence.
    """
    grid, fixed = op.wants("grid", {}), op.wants("tokens", {})
    expected = "grid" if grid else "fixed" if fixed else "any"
    if op.resolution != expected:
        yield Fault(
            "claims.resolution",
            repr(op.resolution),
            f"by its needs it is {expected!r}",
            f"set resolution={expected!r}",
        )
        return
    _, extras = draw(op, (1, 2, 40, 40, 8, 8))
    longer, _ = draw(op, (1, 2, 60, 60, 8, 8))
    if expected == "any":
        if error(run(op, longer, **extras), exact(op, longer, extras)) > NEAR:
            yield Fault(
                "claims.resolution",
                "'any'",
                "60 tokens with tensors of 40 give another answer",
                "set resolution='fixed'",
            )
        return
    if not _refused(op, longer, extras):
        yield Fault(
            "claims.limits",
            f"a sentence for 60 tokens where 40 were told (resolution={expected!r})",
            "they were taken",
            "refuse them in limits",
        )
    if expected == "grid":
        upright, lying = {**extras, "grid": (0, 6, 10)}, {**extras, "grid": (0, 10, 6)}
        if error(run(op, longer, **upright), exact(op, longer, upright)) > 1e-9:
            yield Fault(
                "claims.resolution",
                "'grid'",
                "a grid of 6 x 10 gives another answer than the reference",
                "mend the backend",
            )
        if error(run(op, longer, **upright), run(op, longer, **lying)) < 1e-3:
            yield Fault(
                "claims.resolution",
                "'grid'",
                "grids of 6 x 10 and 10 x 6 give one answer",
                "set resolution='any'",
            )
        none = draw(op, (1, 2, 1, 1, 8, 8))[0]
        tiny = {**extras, "grid": (0, 1, 1)}
        if "ratio" in op.options and not _refused(op, none, tiny):
            yield Fault(
                "claims.limits",
                "a sentence for a grid without a window",
                "it was taken",
                "refuse it in limits",
            )


def needs(op: Operator) -> Iterator[Fault]:
    """What the caller must provide is looked at, and nothing else is wanted."""
    (q, k, v), extras = draw(op, SHAPES["63"])
    unlike_q = k.flip(-2).flip(-1) + 1
    looks = error(op.reference(q, unlike_q, v, **extras), op.reference(q, q, v, **extras)) > NEAR
    if looks == op.wants("tied_qk", {}):
        yield Fault(
            "host.needs",
            f"tied_qk={not looks}",
            f"the reference {'reads' if looks else 'does not read'} k",
            f"{'take out' if looks else 'add'} 'tied_qk'",
        )
    if op.reduces is not None and op.reduces(op.filled({})) > 1 and not op.wants("grid", {}):
        yield Fault(
            "host.reduces",
            f"windows of {op.reduces(op.filled({}))} by default",
            "no grid is told by default",
            "return 1 there",
        )
    for name in set(op.needs) - {"grid", "tied_qk", "tokens"}:
        yield Fault(
            "host.needs",
            f"a need '{name}'",
            "hosts know 'grid', 'tied_qk' and 'tokens'",
            "name one of them",
        )
    if op.wants("grid", {}):
        grid = extras["grid"]
        turned = (grid[0], grid[2], grid[1])
        if (
            grid[1] != grid[2]
            and error(
                op.reference(q, k, v, **{**extras, "grid": turned}), op.reference(q, k, v, **extras)
            )
            < NEAR
        ):
            yield Fault("host.needs", "'grid'", "a turned grid changes nothing", "take out 'grid'")
    options = op.filled({})
    per_token = [
        claim.shape(Sizes(2, 8, options, 12)) != claim.shape(Sizes(2, 8, options, 13))
        for claim in op.own_tensors({}).values()
    ]
    if any(per_token) != op.wants("tokens", {}):
        yield Fault(
            "host.needs",
            f"tokens={op.wants('tokens', {})}",
            f"tensors {'have' if any(per_token) else 'do not have'} a row per token",
            f"{'add' if any(per_token) else 'take out'} 'tokens'",
        )


def learned(op: Operator) -> Iterator[Fault]:
    """Every learned tensor gets a gradient; what starts at a constant is a scale or a bias, which
    takes no weight decay.
    """
    call, extras = draw(op, SHAPES["square"], torch.float32)
    if not op.learned and not _refused(
        op, call, {**extras, "learned": {"temperature": torch.ones(1)}}
    ):
        yield Fault("learned", "no tensors of its own", "attend takes one", "name it in learned")
    for name, tensor in extras.get("learned", {}).items():
        claim = op.learned[name]
        if claim.trained:
            tensor.requires_grad_()
            run(op, call, **extras).square().sum().backward()
            if tensor.grad is None or not bool(tensor.grad.any()):
                yield Fault(
                    f"learned['{name}']", "a trained tensor", "its gradient is zero", "take it out"
                )
            tensor.requires_grad_(requires_grad=False)
        matrix = tensor.ndim > 1 and min(tensor.shape[-2:]) > 1
        if claim.trained and claim.weight_decay != matrix:
            kind = "a matrix, which decays" if matrix else "a scale or a bias, which does not"
            yield Fault(
                f"learned['{name}'].weight_decay",
                str(claim.weight_decay),
                f"shape {tuple(tensor.shape)} is {kind}",
                f"set weight_decay={matrix}",
            )
        moved = {**extras, "learned": {**extras["learned"], name: tensor.detach() * 1.5 + 0.1}}
        with torch.no_grad():
            if error(run(op, call, **moved), run(op, call, **extras)) < 1e-5:
                yield Fault(
                    f"learned['{name}']",
                    "a tensor of the operator's own",
                    "another value changes nothing",
                    "take it out",
                )


def hat(op: Operator) -> Iterator[Fault]:
    """Weights are products of q^ and k^, times one number per head or through a softmax over
    channels; a plain hat looks at one token.
    """
    if op.hat is None:
        return
    (q, k, v), extras = draw(op, (1, 2, 12, 12, 6, 6))
    q_hat, k_hat = op.hat(q), op.hat(k)
    if q_hat.shape != q.shape:
        yield Fault(
            "views.hat",
            "x^ of the shape of x",
            f"{tuple(q_hat.shape)} of {tuple(q.shape)}",
            "return (B, H, N, D)",
        )
        return
    part = slice(3, 7)
    if not isinstance(op.hat, TokenNorm) and error(op.hat(q[:, :, part]), q_hat[:, :, part]) > NEAR:
        yield Fault(
            "views.hat",
            "a function of each token alone",
            "a token's answer depends on the others",
            "write views=Views(hat=TokenNorm('l1')) for a norm over the tokens",
        )
    if op.implied_matrix:
        eye = torch.eye(12, dtype=v.dtype).expand(1, 2, -1, -1)
        weights, products = op.reference(q, k, eye, **extras), q_hat @ k_hat.mT
    else:
        eye = torch.zeros(1, 2, 12, 6, dtype=v.dtype)
        eye[:, :, :6] = torch.eye(6, dtype=v.dtype)
        weights, products = op.reference(q, k, eye, **extras)[:, :, :6].mT.log(), q_hat.mT @ k_hat
        weights, products = (
            weights - weights.mean(-1, keepdim=True),
            products - products.mean(-1, keepdim=True),
        )
    factor = (weights * products).sum((-2, -1), keepdim=True) / products.square().sum(
        (-2, -1), keepdim=True
    )
    apart = error(factor * products, weights)
    if apart > 1e-6:
        yield Fault(
            "views.hat",
            "weights are products of q^ and k^",
            f"they are off by {apart:.1e}",
            "mend the hat, or leave it out",
        )


def class_row(op: Operator) -> Iterator[Fault]:
    """The first query's weights are the first row of the matrix."""
    if op.class_row is None:
        return
    if not op.implied_matrix:
        yield Fault(
            "views.class_row",
            "weights of the first query",
            "the operator has no matrix between tokens",
            "leave it out",
        )
        return
    floor = 1e-6
    (q, k, _), extras = draw(op, (2, 3, 19, 19, 8, 8))
    eye = torch.eye(19, dtype=q.dtype).expand(2, 3, -1, -1)
    options = {**extras, **({"eps": floor} if "eps" in op.options else {})}
    expected = op.reference(q, k, eye, **options)[:, :, :1]
    apart = error(op.class_row(q, k, eps=floor), expected)
    if apart > NEAR:
        yield Fault(
            "views.class_row",
            "the first query's weights (B, H, 1, N)",
            f"off by {apart:.1e} from the matrix of the reference",
            "mend it, or leave it out",
        )

"""Operators in their edge form: of joined heads, for a fixed number of tokens, in float32."""

# B batch, H heads, N queries, M keys, D features of a head, C = H D joined

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import Tensor

from softless.attention.attend import attend
from softless.attention.linear import gain
from softless.attention.norms import EPS, Norm, magnitude, root
from softless.attention.registry import OPERATORS
from softless.exporting.forms.core import Core, Heads, Site, product
from softless.exporting.forms.parts import NoForm
from softless.exporting.forms.soft import Bottleneck


class TokenNormed(Core):
    """q^ (k^^T v), the family of SimA: norms over the tokens, per channel, before heads are apart.

    q is divided by the mean of its absolute values and not by their sum, so that q^ is of the order
    of one whatever the number of tokens; that number stands in `after`, with the token scale.
    """

    def __init__(self, site: Site, norm: Norm) -> None:
        super().__init__(site)
        self.norm: Norm = norm
        self.eps, self.order = site.options.get("eps", EPS), site.options["order"]
        self.after = float(gain(site.queries, site.options.get("token_scale")))
        self.after /= site.queries if norm == "l1" else 1

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B,N,C), k and v (B,M,C) -> (B,N,C), `after` left out."""
        if self.norm == "l1":
            q = q / q.abs().mean(-2, keepdim=True).clamp_min(self.eps / self.queries)
            k = k / k.abs().sum(-2, keepdim=True).clamp_min(self.eps)
        elif self.norm == "l2":
            q, k = (x / root(magnitude(x, "l2"), "l2").clamp_min(self.eps) for x in (q, k))
        q = self.heads.apart(q, self.queries)
        k, v = self.heads.upright(k, self.keys), self.heads.apart(v, self.keys)
        if self.order == "tokens":
            return self.heads.joined(product(product(q, k), v))
        return self.heads.joined(product(q, product(k, v)))


class Softmaxed(Core):
    """softmax(q k^T) v, written out: every runtime knows the three nodes, and those with a fused one
    find them. The scale is in `before`.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        scale = site.options["scale"]
        self.before = site.head_dim**-0.5 if scale is None else float(scale)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B,N,C), `before` in it, k and v (B,M,C) -> (B,N,C)."""
        q, k = self.heads.apart(q, self.queries), self.heads.upright(k, self.keys)
        weights = product(q, k).softmax(-1)
        return self.heads.joined(product(weights, self.heads.apart(v, self.keys)))


class Standardised(Core):
    """SN(q) (SN(k)^T SN(v)) / M of sequence normalisation: means first, then squares of what is
    centred, so that float32 holds what plain sums of squares would lose.
    """

    centres = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.eps = site.options["eps"]
        for name, x in site.learned.items():  # (H,1,D) each
            factor = 1 / site.keys if name.startswith("v_") else 1.0
            self.register_buffer(name, (x.double() * factor).to(x.dtype).reshape(1, 1, -1))

    def _standard(self, x: Tensor, side: str) -> Tensor:
        x = x - x.mean(-2, keepdim=True)
        spread = ((x * x).mean(-2, keepdim=True) + self.eps).sqrt()
        return x * (self.get_buffer(f"{side}_weight") / spread) + self.get_buffer(f"{side}_bias")

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B,N,C), k and v (B,M,C) -> (B,N,C)."""
        q, k, v = (self._standard(x, side) for x, side in zip((q, k, v), "qkv", strict=True))
        context = product(self.heads.upright(k, self.keys), self.heads.apart(v, self.keys))
        return self.heads.joined(product(self.heads.apart(q, self.queries), context))


class Channels(Core):
    """XCA: softmax between the channels of a head, applied to the tokens' own v."""

    temperature: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.eps = site.options["eps"]
        self.register_buffer("temperature", site.learned["temperature"])  # (H,1,1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k and v (B,N,C) -> (B,N,C)."""
        q, k = (x / root(magnitude(x, "l2"), "l2").clamp_min(self.eps) for x in (q, k))
        covariance = product(self.heads.upright(q, self.queries), self.heads.apart(k, self.keys))
        matrix = (covariance * self.temperature).softmax(-1)
        return self.heads.laid(product(matrix, self.heads.upright(v, self.keys)))


class ReluWeighted(Core):
    """relu(q) (relu(k)^T v) / max(relu(q) . sum relu(k), eps)."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.eps = site.options["eps"]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B,N,C), k and v (B,M,C) -> (B,N,C)."""
        q, k = self.heads.apart(q.relu(), self.queries), k.relu()
        total = self.heads.upright(k.sum(-2, keepdim=True), 1)
        context = product(self.heads.upright(k, self.keys), self.heads.apart(v, self.keys))
        weights = product(q, total).clamp_min(self.eps)
        return self.heads.joined(product(q, context) / weights)


class Attended(Core):
    """Any other operator by its eager backend, as the plain model records it."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.heads = Heads(site.heads.number)  # `attend` takes four dimensions
        self.record, self.options = site.record, dict(site.options)
        self.grid, self.names = site.grid, tuple(site.learned)
        for name, x in site.learned.items():
            self.register_buffer(name, x)

    def forward(self, q: Tensor, k: Tensor | None, v: Tensor) -> Tensor:
        """q (B,N,C), k and v (B,M,C), k None where it is tied to q, -> (B,N,C)."""
        learned = {name: self.get_buffer(name) for name in self.names} or None
        o = attend(
            self.heads.apart(q, self.queries),
            None if k is None else self.heads.apart(k, self.keys),
            self.heads.apart(v, self.keys),
            op=self.record,
            grid=self.grid,
            learned=learned,
            backend="eager",
            **self.options,
        )
        return self.heads.joined(o)


# by name; an operator that is not here goes as `Attended`
CORES: Mapping[str, Callable[[Site], Core]] = MappingProxyType({
    "sima": partial(TokenNormed, norm="l1"),
    "sima_l2": partial(TokenNormed, norm="l2"),
    "sima_none": partial(TokenNormed, norm="none"),
    "softmax": Softmaxed,
    "seqnorm": Standardised,
    "xca": Channels,
    "relu_linear": ReluWeighted,
    "soft": partial(Bottleneck, normalised=False),
    "softnorm": partial(Bottleneck, normalised=True),
})


def core_form(site: Site) -> Core:
    """The form of an operator where it stands.

    Raises:
        NoForm: options under which the operator draws at random.
    """
    name, options = site.record.name, site.options
    if options.get("dropout"):
        raise NoForm(f"its option dropout={options['dropout']} draws at random")
    ours = OPERATORS.get(name) is site.record
    as_written = options.get("pairwise") is None and not options.get("causal")
    if ours and name in CORES and as_written and not options.get("parity"):
        return CORES[name](site)
    return Attended(site)

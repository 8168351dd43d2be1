"""One file per operator; the registry is every record imported here
(softless/attention/registry.py).
"""

from softless.attention.ops.cosformer import SPEC as cosformer
from softless.attention.ops.cosformer2d import SPEC as cosformer2d
from softless.attention.ops.efficient import SPEC as efficient
from softless.attention.ops.focused import SPEC as focused
from softless.attention.ops.inline import SPEC as inline
from softless.attention.ops.linformer import SPEC as linformer
from softless.attention.ops.mala import SPEC as mala
from softless.attention.ops.nystrom import SPEC as nystrom
from softless.attention.ops.performer import SPEC as performer
from softless.attention.ops.relu_linear import SPEC as relu_linear
from softless.attention.ops.seqnorm import SPEC as seqnorm
from softless.attention.ops.sima import SPEC as sima
from softless.attention.ops.sima_l2 import SPEC as sima_l2
from softless.attention.ops.sima_none import SPEC as sima_none
from softless.attention.ops.soft import SPEC as soft
from softless.attention.ops.softmax import SPEC as softmax
from softless.attention.ops.softnorm import SPEC as softnorm
from softless.attention.ops.xca import SPEC as xca

__all__ = [
    "cosformer",
    "cosformer2d",
    "efficient",
    "focused",
    "inline",
    "linformer",
    "mala",
    "nystrom",
    "performer",
    "relu_linear",
    "seqnorm",
    "sima",
    "sima_l2",
    "sima_none",
    "soft",
    "softmax",
    "softnorm",
    "xca",
]

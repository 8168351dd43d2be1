"""One file per operator; the registry is every record imported here (softless/attention/registry.py)."""

from softless.attention.ops.sima import SPEC as sima
from softless.attention.ops.sima_l2 import SPEC as sima_l2
from softless.attention.ops.sima_none import SPEC as sima_none
from softless.attention.ops.softmax import SPEC as softmax
from softless.attention.ops.xca import SPEC as xca

__all__ = ["sima", "sima_l2", "sima_none", "softmax", "xca"]

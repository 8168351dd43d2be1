"""Building blocks that need torch alone."""

from softless.layers.attention import CLASSES, Attention, operator_class
from softless.layers.class_attention import ClassAttention
from softless.layers.conv_attention import ConvAttention
from softless.layers.grid import SharedGrid
from softless.layers.lpi import LPI
from softless.layers.own_tensors import stepped
from softless.layers.patch_embed import ConvPatchEmbed, check_size
from softless.layers.position import FourierPosition, fourier_table

__all__ = [
    "CLASSES",
    "LPI",
    "Attention",
    "ClassAttention",
    "ConvAttention",
    "ConvPatchEmbed",
    "FourierPosition",
    "SharedGrid",
    "check_size",
    "fourier_table",
    "operator_class",
    "stepped",
]

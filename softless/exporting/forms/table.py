"""The table of forms: a host's record names it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from softless.exporting.forms import pyramid, vit, xcit
from softless.exporting.forms.parts import Setting

# by the name of the host's record (`softless.models.hosts`)
FORMS: Mapping[str, Callable[[Any, Setting], nn.Module]] = MappingProxyType({
    "vit": vit.vit_form,
    "xcit": xcit.xcit_form,
    "cvt": pyramid.pyramid_form,
    "pyramid": pyramid.pyramid_form,
})

"""All layouts, those that are known beyond doubt first."""

from softless.bags.files import Source
from softless.bags.layouts import clam, gigapath, mopadi, plain, slide2vec, stamp, trident
from softless.bags.layouts.layout import Layout
from softless.errors import unknown

LAYOUTS = {
    layout.name: layout
    for layout in (
        trident.LAYOUT,
        slide2vec.LAYOUT,
        stamp.LAYOUT,
        stamp.HISTORIC,
        clam.LAYOUT,
        mopadi.LAYOUT,
        gigapath.LAYOUT,
        plain.LAYOUT,
    )
}


def layout_of(source: Source, name: str | None) -> Layout:
    """The layout that is named, or the first that recognises a file.

    Raises:
        UsageError: no layout has the name.
    """
    if name is None:
        return next(layout for layout in LAYOUTS.values() if layout.recognises(source))
    if name not in LAYOUTS:
        raise unknown("layout of features", name, tuple(LAYOUTS))
    return LAYOUTS[name]

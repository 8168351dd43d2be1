"""Names of slides: those of their files without the endings that tools add or take away."""

from softless.bags.files import ENDINGS

SCANS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".czi", ".bif")
MORE_SCANS = (".svslide", ".dcm", ".isyntax", ".qptiff", ".ome")
ALL = (*ENDINGS, *SCANS, *MORE_SCANS)


def bare(name: str) -> str:
    """A slide's name without the endings of feature files and slides.

    >>> bare("a/b.h5"), bare("TCGA-01.svs"), bare("c.1"), bare("d.ome.tiff")
    ('a/b', 'TCGA-01', 'c.1', 'd')
    """
    name = name.strip().replace("\\", "/")
    while (ending := next((end for end in ALL if name.lower().endswith(end)), "")) and len(
        name
    ) > len(ending):
        name = name[: -len(ending)]
    return name

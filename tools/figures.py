"""The figures of the documents: each has its title, its words and its dark colours
(`softless.compare.readable`).

python tools/figures.py            # mend docs/figures/*.svg that an older softless drew
python tools/figures.py --check    # name those that are not so; exit code 1
"""

import sys
from pathlib import Path

from lab.speed.figures import FIGURES
from softless.compare.readable import readable
from softless.compare.resolution import FIGURE

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"


def title(name: str) -> str:
    """What the figure of this file is called where it is drawn."""
    kind, _, which = name.partition("_")
    return FIGURES[which].title if kind == "speed" else FIGURE


def main(words: list[str]) -> int:
    old = []
    for file in sorted(FOLDER.glob("*.svg")):
        text = file.read_text(encoding="utf-8")
        mended = readable(text, title(file.stem))
        if mended != text:
            old.append(file.name)
            if "--check" not in words:
                file.write_text(mended, encoding="utf-8")
    sys.stdout.write(
        "".join(f"{name}: {'old' if '--check' in words else 'mended'}\n" for name in old)
    )
    return 1 if old and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""An environment on top of the one that runs this: it sees all that is installed there, and has more.

python tools/on_top.py FOLDER         # a venv, which sees this environment from now on
python tools/on_top.py EXTRA ...      # what the project's extras ask for, to hand to pip
"""

import re
import sys
import sysconfig
from importlib.metadata import requires
from pathlib import Path


def sees(folder: Path) -> None:
    """Add this environment's packages behind those of a venv, and what its own .pth files add: an
    editable installation is one of them.
    """
    (own,) = folder.glob("lib/python3*/site-packages")
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
    (own / "zz_first.pth").write_text(f"{line}\n")


def asked_for(extras: list[str]) -> list[str]:
    """Requirements of extras, as the installed project states them.

    Raises:
        SystemExit: there is no such extra.
    """
    found: dict[str, list[str]] = {name: [] for name in extras}
    for line in requires("softless") or []:
        requirement, _, marker = line.partition(";")
        if (match := re.search(r"extra == [\"']([^\"']+)", marker)) and match[1] in found:
            found[match[1]].append(requirement.replace(" ", ""))
    if absent := [name for name, requirements in found.items() if not requirements]:
        sys.exit(f"no extra named {', '.join(absent)}")
    return list(dict.fromkeys(line for requirements in found.values() for line in requirements))


if __name__ == "__main__":
    first = sys.argv[1]
    if Path(first, "pyvenv.cfg").is_file():
        sees(Path(first))
    else:
        print(*asked_for(sys.argv[1:]))

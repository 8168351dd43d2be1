"""What a test compiles and builds with."""

import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def no_kernels() -> str:
    """Why the native kernels cannot be compiled here; empty where they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return (
            f"the native kernels are for Linux on x86-64, this is {sys.platform} on "
            f"{platform.machine()}"
        )
    named = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in named):
        return f"no C++ compiler: looked for {', '.join(named)}"
    return ""


def cmake() -> str:
    """The one installed with this Python (extra dev), or the system's."""
    found = shutil.which(
        "cmake", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    )
    assert found, 'no cmake: pip install "softless[dev]"'
    return found

"""Networks, their inference and checkpoints. Importing the package settles what they are imported beside."""

import sys
from pathlib import Path


def leave_triton_out(maps: Path = Path("/proc/self/maps")) -> None:
    """Keep triton from being imported where Mesa's LLVM is in the process: its own LLVM would end it.

    A viewer has it once Mesa draws by software, or on a Radeon. torch and diffusers look for triton when they are imported, find none, and go on:
    nothing here is compiled by it.
    """
    if "triton" not in sys.modules and maps.is_file() and "libLLVM" in maps.read_text(errors="replace"):
        sys.modules["triton"] = None  # type: ignore[assignment]


leave_triton_out()

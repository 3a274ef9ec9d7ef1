"""banpick_exp: can this MoE checkpoint route smarter, and what does it cost?"""

from pathlib import Path

__version__ = "0.1.0"

__path__.append(str(Path(__file__).parent / "former"))  # old commands: see there

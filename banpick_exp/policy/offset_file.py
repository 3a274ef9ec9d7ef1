"""Reading router-logit offsets from a safetensors file without torch, so that planning can check and hash them.

The format: 8 bytes little-endian length N, N bytes of JSON {tensor: {dtype, shape, data_offsets}}, then the data.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "logit_offset"
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
FLOAT32_MAX = 3.4028235e38
REMEDY = f'Write it with safetensors.torch.save_file({{"{KEY}": offset}}, path), offset [layers, experts].'


@dataclass(frozen=True, kw_only=True, slots=True)
class Offset:
    """One offset per MoE layer and expert, and the SHA-256 of the whole file in hex."""

    shape: tuple[int, ...]
    values: tuple[float, ...]
    """Row by row."""
    sha256: str


def read_offset(path: str) -> Offset:
    """The tensor `logit_offset` of the file. Raises ValueError, as what follows `policy.path=<path>`."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"does not exist: there is nothing to add. {REMEDY}") from None
    except OSError as problem:
        raise ValueError(f"cannot be read ({problem.strerror}). {REMEDY}") from None
    begin, entry = _entry(content)
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        first, last = (int(place) for place in entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"is no safetensors file: the entry of {KEY} is damaged. {REMEDY}") from None
    if dtype not in WIDTHS:
        raise ValueError(f"holds {KEY} as {dtype}: logits are {', '.join(WIDTHS)}. {REMEDY}")
    data = content[begin + first : begin + last]
    if not 0 <= first <= last or len(data) != math.prod(shape) * WIDTHS[dtype]:
        raise ValueError(f"is cut off: {KEY} of shape {list(shape)} does not fit the data. {REMEDY}")
    values = _numbers(data, dtype)
    for place, value in enumerate(values):
        if not abs(value) <= FLOAT32_MAX:
            where = f"layer {place // shape[-1]}, expert {place % shape[-1]}" if len(shape) == 2 else f"entry {place}"
            raise ValueError(
                f"holds {value} at {where}: routing cannot compute with it. Use finite float32 numbers; to exclude an "
                "expert use policy=mask."
            )
    return Offset(shape=shape, values=values, sha256=hashlib.sha256(content).hexdigest())


def _entry(content: bytes) -> tuple[int, dict[str, Any]]:
    """Where the data begins, and the header's entry of `KEY`."""
    length = int.from_bytes(content[:8], "little")
    begin = 8 + length
    try:
        header = json.loads(content[8:begin]) if len(content) >= begin > 8 else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"is no safetensors file: its header cannot be read. {REMEDY}")
    if not isinstance(header.get(KEY), dict):
        names = ", ".join(sorted(set(header) - {"__metadata__"})) or "nothing"
        raise ValueError(f"has no tensor {KEY}, it holds {names}. {REMEDY}")
    return begin, header[KEY]


def _numbers(data: bytes, dtype: str) -> tuple[float, ...]:
    count = len(data) // WIDTHS[dtype]
    if dtype == "BF16":  # the upper half of a float32
        padded = b"".join(b"\0\0" + data[place : place + 2] for place in range(0, len(data), 2))
        return struct.unpack(f"<{count}f", padded)
    return struct.unpack(f"<{count}{ {'F64': 'd', 'F32': 'f', 'F16': 'e'}[dtype] }", data)

"""What a launch of the router costs in registers and memory, by compiling it for GPUs that need not be there.

python -m banpick_kernels.resources                # a markdown table, every variant for every target
python -m banpick_kernels.resources cuda:90        # for one target
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from banpick_kernels.triton_kernel import OPTIONS, max_registers, route_kernel

TARGETS = {
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}
SCALARS = {"scale": "fp32", "num_tokens": "i32"}
POINTERS = {
    "weights_ptr": "*fp32", "ids_ptr": "*i32", "values_ptr": "*fp32", "bias_ptr": "*fp32", "key_ptr": "*i1",
    "tokens_ptr": "*i64", "usage_ptr": "*i64", "row_ptr": "*i32", "padding_ptr": "*i1", "correction_ptr": "*fp32",
    "stock_weights_ptr": "*fp32", "stock_ids_ptr": "*i32",
}  # fmt: skip
OPTIONAL = {
    "HAS_CORRECTION": ("correction_ptr",), "HAS_ROWS": ("row_ptr",), "HAS_PADDING": ("padding_ptr",),
    "HAS_COUNTERS": ("tokens_ptr", "usage_ptr"), "HAS_STOCK": ("stock_weights_ptr", "stock_ids_ptr"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One specialisation of the kernel. Pick, Ban and the thresholds are in every one: they are read from the table."""

    num_experts: int = 128
    top_k: int = 8
    slots: int = 8
    logits: str = "bf16"
    block_tokens: int = 1
    sigmoid: bool = False
    correction: bool = False
    rows: bool = True
    padding: bool = True
    counters: bool = True
    stock: bool = False

    def constants(self) -> dict[str, Any]:
        """Every constexpr of the kernel by name."""
        return {
            "E": self.num_experts, "E_PAD": triton.next_power_of_2(self.num_experts), "K": self.top_k,
            "S": self.slots, "S_PAD": triton.next_power_of_2(max(self.top_k, self.slots)),
            "SIGMOID": self.sigmoid, "RENORMALIZE": True, "HAS_CORRECTION": self.correction, "HAS_ROWS": self.rows,
            "HAS_PADDING": self.padding, "HAS_COUNTERS": self.counters, "HAS_STOCK": self.stock,
            "BLOCK_T": self.block_tokens,
        }  # fmt: skip


VARIANTS = {
    "nothing on: one row, no counters": Variant(rows=False, padding=False, counters=False),
    "everything on": Variant(),
    "everything on, two tokens": Variant(block_tokens=2),
    "everything on, stock": Variant(stock=True),
    "everything on, 16 slots": Variant(slots=16),
    "everything on, fp32": Variant(logits="fp32"),
    "sigmoid, correction (V3: 256 experts)": Variant(num_experts=256, sigmoid=True, correction=True, logits="fp32"),
    "widest: 512 experts, 16 of them, 32 slots": Variant(num_experts=512, top_k=16, slots=32, logits="fp32"),
    "widest, correction, stock": Variant(
        num_experts=512, top_k=16, slots=32, logits="fp32", sigmoid=True, correction=True, stock=True
    ),
    "500 experts, softmax, correction, stock": Variant(
        num_experts=500, top_k=16, slots=32, logits="fp32", correction=True, stock=True
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Per thread: registers, stack and local (spilled) bytes. Per warp: shared bytes. In the code: barriers."""

    registers: int
    stack: int
    local: int
    shared: int
    barriers: int


def compiled(variant: Variant, target: GPUTarget) -> Any:
    """The kernel of `variant` for `target`, as triton would specialise it: 16-byte aligned pointers, one warp."""
    constants = variant.constants()
    absent = {name for flag, names in OPTIONAL.items() if not constants[flag] for name in names}
    constants |= dict.fromkeys(absent)
    types = {**POINTERS, "logits_ptr": f"*{variant.logits}", **SCALARS}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in route_kernel.arg_names}
    whole = variant.num_experts % 16 == 0  # then triton knows that every row is aligned too
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (whole and name.endswith("_stride") and name != "tokens_stride")
    }
    source = ASTSource(route_kernel, signature, constexprs=constants, attrs=aligned)
    options = dict(OPTIONS)
    if target.backend == "cuda":
        options["maxnreg"] = max_registers(variant.num_experts, variant.block_tokens, variant.correction)
    return triton.compile(source, target=target, options=options)


def measure(variant: Variant, target: GPUTarget) -> Resources:
    """Compile and read what the compiler's own tools say about the result."""
    kernel = compiled(variant, target)
    if target.backend == "hip":
        return _of_amdgcn(kernel.asm["amdgcn"])
    return _of_cubin(kernel.asm["cubin"], kernel.metadata.shared)


def _of_cubin(cubin: bytes, dynamic_shared: int) -> Resources:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage))
    return Resources(
        registers=int(found["REG"]),
        stack=int(found["STACK"]),
        local=int(found["LOCAL"]) + 4 * len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        shared=int(found["SHARED"]) + dynamic_shared,
        barriers=len(re.findall(r"\bBAR\.", sass)),
    )


def _of_amdgcn(text: str) -> Resources:
    def metadata(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))  # type: ignore[union-attr]

    return Resources(
        registers=metadata("vgpr_count"),
        stack=metadata("private_segment_fixed_size"),
        local=4 * metadata("vgpr_spill_count"),
        shared=metadata("group_segment_fixed_size"),
        barriers=len(re.findall(r"\bs_barrier\b", text)),
    )


def table(targets: dict[str, GPUTarget]) -> list[str]:
    """The figures as lines of a markdown table."""
    lines = [
        "| variant | target | registers | local bytes | stack | shared bytes | barriers |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, variant in VARIANTS.items():
        for target_name, target in targets.items():
            found = measure(variant, target)
            figures = (found.registers, found.local, found.stack, found.shared, found.barriers)
            lines.append(f"| {name} | {target_name} | {' | '.join(map(str, figures))} |")
    return lines


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(TARGETS)
    if unknown := set(chosen) - set(TARGETS):
        sys.exit(f"target {', '.join(sorted(unknown))} is unknown. Use one or more of: {', '.join(TARGETS)}.")
    print("\n".join(table({name: TARGETS[name] for name in chosen})))

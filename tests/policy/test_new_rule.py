"""docs/rules.md: adding a rule takes the four pieces that the page shows, and nothing else knows a rule by its name."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from banpick_exp.policy import POLICIES, build_policy
from banpick_exp.policy.registry import RULES
from banpick_exp.policy.rule import Rule
from banpick_kernels.layer_hooks import LayerEdit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "banpick_exp"
PAGE = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def edited(source: str, diff: str) -> str:
    """`source` with the added lines of a diff: imports with the imports, others behind the lines they follow there."""
    imported = [line[1:] for line in diff.splitlines() if line.startswith("+from ")]
    within = [line for line in diff.splitlines() if not line.startswith("+from ")]
    before = "\n".join(line[1:] for line in within if line[0] == " ") + "\n"
    after = "\n".join(line[1:] for line in within) + "\n"
    assert source.count(before) == 1, "the page shows other lines than the registry has"
    first = source.index("from banpick_exp.policy.rules.")
    return source[:first] + "\n".join(imported) + "\n" + source[first:].replace(before, after)


class TestTheWorkedExample:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        """A copy of the project with the page's four pieces in their places."""
        left_out = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(PACKAGE, tmp_path / "banpick_exp", ignore=left_out)
        for folder in PACKAGE.rglob("assets"):
            (tmp_path / folder.relative_to(ROOT)).symlink_to(folder)
        shutil.copytree(ROOT / "conf", tmp_path / "conf")
        (tmp_path / "tests" / "policy").mkdir(parents=True)
        rule, test, _ = blocks("python")
        (diff,) = blocks("diff")
        (defaults,) = blocks("yaml")
        registry = tmp_path / "banpick_exp" / "policy" / "registry.py"
        registry.write_text(edited(registry.read_text(encoding="utf-8"), diff))
        for text, place in (
            (rule, "banpick_exp/policy/rules/early_layers.py"),
            (defaults, "conf/policy/early_layers.yaml"),
            (test, "tests/policy/test_early_layers.py"),
        ):
            assert f"`{place}`" in PAGE
            (tmp_path / place).write_text(text)
        return tmp_path

    @pytest.mark.slow
    def test_four_pieces_are_a_rule(self, project: Path) -> None:
        """The page's test runs in the copy: the docstring's example, reference routing, budget, an error and a plan."""
        path = os.pathsep.join(map(str, (project, ROOT / "kernels")))
        options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "tests/policy/test_early_layers.py"],
            cwd=project,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        assert "5 passed" in done.stdout

    def test_a_rule_beyond_the_table(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "sharpen.py"
        file.write_text(blocks("python")[2])
        spec = importlib.util.spec_from_file_location("sharpen", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "sharpen", module)
        spec.loader.exec_module(module)
        monkeypatch.setitem(POLICIES, "sharpen", module.Sharpen)
        assert doctest.testmod(module).attempted >= 4 and doctest.testmod(module).failed == 0
        shape: dict[str, Any] = {"num_layers": 2, "num_experts": 16, "top_k": 4}
        logits = torch.randn(400, 16, generator=torch.Generator().manual_seed(11)) * 2
        policy = build_policy("sharpen", {"factor": 0.5}, **shape)
        weights, ids, _ = policy.route(logits, 1)
        assert torch.equal(ids, build_policy("none", {}, **shape).route(logits, 1)[1])
        assert weights.allclose((logits * 0.5).topk(4).values.softmax(-1), atol=1e-6)
        assert policy.digest() != build_policy("sharpen", {"factor": 2}, **shape).digest()


class TestThePage:
    def test_the_table_names_every_rule(self) -> None:
        table = re.findall(r"^\| `(\w+)`(?: †)? \|", PAGE, flags=re.MULTILINE)
        assert set(table) >= set(POLICIES)

    def test_the_methods_are_those_of_the_code(self) -> None:
        """Every method and attribute that a rule may state stands in the table, and nothing that is gone."""
        section = PAGE.split("What each method owes the rest:")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, flags=re.MULTILINE)
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        of_references = {"is_stock", "reference_rank", "is_reference"}
        explained = {"name", "canonical", "label"}  # by their docstrings, and by the examples
        offered = {name for name in vars(Rule) if not name.startswith(("_", "model_"))}
        offered |= {name for name in Rule.__annotations__ if name != "model_config"}
        assert named == offered - of_references - explained

    def test_the_hooks_are_those_of_the_code(self) -> None:
        section = PAGE.split("## A rule beyond the table")[1]
        named = set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))
        hooks = {name for name, value in vars(LayerEdit).items() if inspect.isfunction(value)}
        assert named == {name for name in hooks if not name.startswith("_")} - {"tensors", "to", "digest"}


class TestWhoKnowsARule:
    """A rule's name is its file, its line of the registry, its file in conf/ and a colour; the rest asks the rule."""

    CHOOSES = (
        "policy/rules/",
        "policy/registry.py",
        "policy/offset_file.py",  # the tensor in the file is named like the rule
        "report/figures/styles.py",
        "engine/verify/",  # tries some of them on the loaded router
        "evaluation/bench/",  # times some of them
        "evaluation/controls.py",  # plants and finds experts with pick
    )
    """These name policies because they run them, or draw them; none asks which one it was given."""
    REFERENCES = frozenset(rule.name for rule in RULES if rule.reference_rank is not None)
    """Known in records, tables and figures: everything is compared with them."""
    ORDINARY = frozenset({"mask", "top_p"})
    """Words of other things too: sampling has a top_p."""

    def test_one_file_a_rule(self) -> None:
        files = {path.stem for path in (PACKAGE / "policy" / "rules").glob("*.py")} - {"__init__"}
        assert files == set(POLICIES) == {path.stem for path in (ROOT / "conf" / "policy").glob("*.yaml")}
        for rule in RULES:
            assert rule.__module__ == f"banpick_exp.policy.rules.{rule.name}"

    def test_the_references_are_the_ranked_ones(self) -> None:
        from banpick_exp.analysis.pairing import REFERENCE_POLICIES

        ranked = sorted((rule.reference_rank, rule.name) for rule in RULES if rule.reference_rank is not None)
        assert tuple(name for _, name in ranked) == REFERENCE_POLICIES
        assert [rule.name for rule in RULES if rule.is_stock] == ["none"]

    @pytest.mark.parametrize(
        "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix()
    )
    def test_no_other_module_knows_its_name(self, path: Path) -> None:
        place = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if not place.startswith(self.CHOOSES):
            assert not named & (set(POLICIES) - self.REFERENCES - self.ORDINARY)
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and not place.startswith("engine/verify/"):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                asks = [side for side in sides if re.search(r"\brule\.name$", side)]
                assert not asks, f"line {node.lineno} tells rules apart by name: give Rule a method"

"""The reference router by hand: worked examples, ties, extremes, and the table it reads."""

import doctest
import math
from dataclasses import fields
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from banpick_kernels import insertion, reference
from banpick_kernels.reference import edit_selection, route, router_scores, select_top_k
from banpick_kernels.table import COLUMNS, WIDTH, LayerTable, RouterTable

NAN, INF = math.nan, math.inf
THRESHOLDS = ("min_ratio", "mass", "min_weight", "tail_square")


def filled(num_experts: int, top_k: int, keys: tuple[int, ...] = (), rows: int = 1, **values: float) -> RouterTable:
    """A one-layer table with named fields set for every row, and the key experts of every row."""
    table = RouterTable.neutral(1, num_experts, top_k, rows=rows)
    table.key_PLE[:, 0, list(keys)] = True
    for name, value in values.items():
        getattr(table, name).fill_(value)
    return table


def edit(
    scores: list[float], table: RouterTable, top_k: int, slots: int, renormalize: bool = False
) -> tuple[list, list]:
    """Kept ids and weights of one token under the plain base selection."""
    scores_TE = torch.tensor([scores])
    base_ids_TK = select_top_k(scores_TE, top_k)
    weights, ids, kept = edit_selection(scores_TE.log(), scores_TE, base_ids_TK, table.layer(0), slots, renormalize)
    if not table.key_PLE.any():
        alone = edit_selection(
            scores_TE.log(), scores_TE, base_ids_TK, table.layer(0), slots, renormalize, inserts=False
        )
        assert all(torch.equal(a, b) for a, b in zip((weights, ids, kept), alone, strict=True))
    neutral = RouterTable.neutral(1, len(scores), top_k)
    if all(torch.equal(getattr(table, name), getattr(neutral, name)) for name in THRESHOLDS):
        plain = edit_selection(
            scores_TE.log(), scores_TE, base_ids_TK, table.layer(0), slots, renormalize, thresholds=False
        )
        assert all(torch.equal(a, b) for a, b in zip((weights, ids, kept), plain, strict=True))
    assert ids[~kept].tolist() == [ids[0, 0].item()] * int((~kept).sum())
    assert weights[~kept].tolist() == [0.0] * int((~kept).sum())
    assert kept[0].tolist() == sorted(kept[0].tolist(), reverse=True)
    return ids[kept].tolist(), [round(weight, 6) for weight in weights[kept].tolist()]


@pytest.mark.parametrize(("module", "least"), [(reference, 12), (insertion, 5)], ids=["reference", "insertion"])
def test_the_examples_of_the_docstrings(module: Any, least: int) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= least and result.failed == 0


class TestScores:
    def test_softmax_and_sigmoid(self) -> None:
        logits = torch.tensor([[0.0, math.log(3.0)]])
        assert router_scores(logits, "softmax").allclose(torch.tensor([[0.25, 0.75]]))
        assert router_scores(logits, "sigmoid").allclose(torch.tensor([[0.5, 0.75]]))

    @pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
    def test_values_that_are_no_numbers(self, scoring: str) -> None:
        scores = router_scores(torch.tensor([[NAN, 1.0, -INF], [NAN, -INF, -INF], [INF, 0.0, INF]]), scoring)
        assert scores.isfinite().all()
        assert scores[0, 0] == scores[0, 2] == 0 and scores[0, 1] > 0
        assert scores[1].tolist() == [0, 0, 0]
        assert scores[2, 0] == scores[2, 2] > scores[2, 1]

    @pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
    @pytest.mark.parametrize("shape", [(1, 3), (3, 10), (7, 17), (1, 127)])
    def test_equal_logits_have_equal_scores_in_every_position(self, scoring: str, shape: tuple[int, int]) -> None:
        for logit in torch.linspace(-5, 5, 41).tolist():
            assert router_scores(torch.full(shape, logit), scoring).unique().numel() == 1

    def test_unknown_scoring_says_what_to_use(self) -> None:
        with pytest.raises(ValueError, match=r"scoring='tanh' is unknown.*softmax or sigmoid"):
            router_scores(torch.zeros(1, 2), "tanh")

    def test_ties_go_to_the_lower_id(self) -> None:
        assert select_top_k(torch.tensor([[0.1, 0.3, 0.3, 0.1, 0.3]]), 4).tolist() == [[1, 2, 4, 0]]
        assert select_top_k(torch.full((2, 128), 0.5), 8).tolist() == [list(range(8))] * 2


class TestKeep:
    def test_neutral_is_the_plain_top_k(self) -> None:
        scores = [0.10, 0.40, 0.20, 0.30]
        assert edit(scores, RouterTable.neutral(1, 4, 2), 2, 2) == ([1, 3], [0.4, 0.3])
        assert edit(scores, RouterTable.neutral(1, 4, 2), 2, 2, renormalize=True) == ([1, 3], [0.571429, 0.428571])

    def test_neutral_on_random_tokens_equals_torch_topk(self) -> None:
        logits = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        weights, ids, kept = route(logits, RouterTable.neutral(1, 32, 8).layer(0), 8, 8, True)
        expected, expected_ids = logits.softmax(-1).topk(8)
        assert kept.all() and torch.equal(ids.long(), expected_ids)
        assert weights.allclose(expected / expected.sum(-1, keepdim=True))

    def test_fixed_k_keeps_the_heaviest_and_renormalises_after(self) -> None:
        table = filled(4, 3, keep=2)
        assert edit([0.1, 0.4, 0.3, 0.2], table, 3, 3) == ([1, 2], [0.4, 0.3])
        assert edit([0.1, 0.4, 0.3, 0.2], table, 3, 3, renormalize=True) == ([1, 2], [0.571429, 0.428571])

    @pytest.mark.parametrize(
        ("ban_lambda", "sensitivity", "kept"),
        [
            (1.0, 1.0, 6),  # 3 + 5 * 0.5 = 5.5, half to even
            (0.6, 1.0, 4),  # 3 + 5 * 0.3 = 4.5, half to even
            (2.0, 1.0, 8),  # S = 1
            (2.0, 5.0, 8),  # clamped
            (1.0, 0.0, 3),  # an insensitive layer
            (1.0, -9.0, 3),  # clamped
        ],
    )
    def test_ban_rounds_half_to_even_and_clamps(self, ban_lambda: float, sensitivity: float, kept: int) -> None:
        # R_min = R_max: only the layer decides.
        table = filled(8, 8, ban=True, ban_k_min=3, ban_lambda=ban_lambda, sensitivity=sensitivity)
        assert len(edit([0.125] * 8, table, 8, 8)[0]) == kept

    def test_ban_by_token(self) -> None:
        # K = 4, k_min = 1, lambda = 2, sensitivity = 0, R in [0.75, 1]: k = round(1 + 3 * Tn).
        table = filled(4, 4, ban=True, ban_k_min=1, ban_lambda=2.0, ratio_min=0.75, ratio_max=1.0)
        assert edit([0.25, 0.25, 0.25, 0.25], table, 4, 4)[0] == [0, 1, 2, 3]  # R = 0.75, Tn = 1
        assert edit([0.45, 0.35, 0.10, 0.10], table, 4, 4)[0] == [0, 1]  # R = 0.90, Tn = 0.4, 2.2
        assert edit([1.00, 0.00, 0.00, 0.00], table, 4, 4)[0] == [0]  # R = 1.00, Tn = 0

    @pytest.mark.parametrize("top_k", [1, 2, 3])
    def test_ban_with_fewer_than_four_base_experts_has_r_of_one(self, top_k: int) -> None:
        table = filled(4, top_k, ban=True, ban_k_min=1, ban_lambda=2.0, ratio_min=0.5, ratio_max=1.0)
        assert edit([0.1, 0.2, 0.3, 0.4], table, top_k, top_k)[0] == [3]  # Tn = 0 for every token

    def test_ban_reads_the_base_only(self) -> None:
        # R over the base {0, 1, 2, 3} is 0.9; over all experts it would be 0.75 and keep one more.
        scores = [0.25, 0.25, 0.25, 1 / 12, 1 / 12, 1 / 12]
        table = filled(6, 4, ban=True, ban_k_min=1, ban_lambda=2.0, ratio_min=0.75, ratio_max=1.0)
        assert edit(scores, table, 4, 4)[0] == [0, 1]

    def test_a_token_without_scores_keeps_the_most(self) -> None:
        table = filled(5, 4, ban=True, ban_k_min=1, ban_lambda=2.0, ratio_min=0.7, ratio_max=1.0)
        assert edit([0.0] * 5, table, 4, 4, renormalize=True) == ([0, 1, 2, 3], [0.0] * 4)

    def test_logits_decide_where_scores_are_equal(self) -> None:
        # exp(-200) is 0 in float32: three experts score 0, but the router still ranks them.
        logits = torch.tensor([[0.0, -300.0, -200.0, -250.0]])
        assert route(logits, RouterTable.neutral(1, 4, 3).layer(0), 3, 3, True)[1].tolist() == [[0, 2, 3]]

    @pytest.mark.parametrize(
        ("values", "kept"),
        [
            ({"min_ratio": 0.5}, 2),  # 0.25 is half of 0.5: not dropped
            ({"min_ratio": 0.51}, 1),
            ({"min_ratio": 0.51, "floor": 3}, 3),
            ({"mass": 0.5}, 1),
            ({"mass": 0.51}, 2),
            ({"mass": 1.0}, 4),
            ({"min_weight": 0.125}, 4),
            ({"min_weight": 0.2}, 2),
            ({"tail_square": 1 / 64}, 4),  # the last alone has 1/64
            ({"tail_square": 1 / 32}, 3),  # the last two have 1/32: the third stays
            ({"tail_square": 0.05}, 2),
            ({"tail_square": 9.0}, 1),
            ({"min_ratio": 0.5, "mass": 0.5}, 1),  # the strictest decides
            ({"min_ratio": 0.0, "keep": 3}, 3),
            ({"mass": 0.9, "keep": 2}, 2),
        ],
    )
    @pytest.mark.parametrize("scale", [1.0, 0.25])
    def test_thresholds_look_at_normalised_weights(self, values: dict[str, Any], kept: int, scale: float) -> None:
        scores = [scale * w for w in (0.5, 0.25, 0.125, 0.125)]
        assert len(edit(scores, filled(4, 4, **values), 4, 4)[0]) == kept

    @pytest.mark.parametrize(
        ("mass", "raw", "kept"),
        [(0.25, True, 1), (0.26, True, 2), (0.45, True, 4), (0.6, True, 4), (0.45, False, 1), (0.6, False, 2)],
    )
    def test_a_raw_mass_is_that_of_the_scores_undivided(self, mass: float, raw: bool, kept: int) -> None:
        scores = [0.25, 0.125, 0.0625, 0.0625, 0.03125]  # the selected four hold half
        assert len(edit(scores, filled(5, 4, mass=mass, raw_mass=raw), 4, 4)[0]) == kept


class TestInsert:
    SCORES: ClassVar = [0.05, 0.30, 0.20, 0.15, 0.10, 0.20]  # ranked 1, 2, 5, 3, 4, 0; top 2 = {1, 2}

    def test_adding_by_force_and_by_window(self) -> None:
        assert edit(self.SCORES, filled(6, 2, (0, 3), insert_window=6), 2, 4) == ([1, 2, 3, 0], [0.3, 0.2, 0.15, 0.05])
        assert edit(self.SCORES, filled(6, 2, (0, 3), insert_window=4), 2, 4) == ([1, 2, 3], [0.3, 0.2, 0.15])
        assert edit(self.SCORES, filled(6, 2, (0, 3), insert_window=3), 2, 4) == ([1, 2], [0.3, 0.2])

    def test_replacing_evicts_the_lightest_and_renormalises_after(self) -> None:
        table = filled(6, 2, (3,), insert_window=4, insert_replaces=True)
        assert edit(self.SCORES, table, 2, 2) == ([1, 3], [0.3, 0.15])
        assert edit(self.SCORES, table, 2, 2, renormalize=True) == ([1, 3], [0.666667, 0.333333])

    def test_the_highest_key_expert_comes_first_and_none_evicts_another(self) -> None:
        table = filled(6, 2, (2, 3, 4), insert_window=6, insert_replaces=True)
        assert edit(self.SCORES, table, 2, 2)[0] == [2, 3]  # 2 stays, 3 evicts 1, 4 finds nobody
        table = filled(6, 2, (0, 3, 4), insert_window=6, insert_replaces=True)
        assert edit(self.SCORES, table, 2, 2)[0] == [3, 4]  # 3 evicts 2, 4 evicts 1, 0 finds nobody

    def test_a_key_expert_in_the_base_changes_nothing(self) -> None:
        table = filled(6, 2, (1, 2), insert_window=6, insert_replaces=True)
        assert edit(self.SCORES, table, 2, 2) == ([1, 2], [0.3, 0.2])

    def test_ties(self) -> None:
        flat = [0.2] * 5
        # ranked 0, 1, 2, 3, 4: the window of 3 ends after expert 2; of two equal base experts the higher id goes.
        assert edit(flat, filled(5, 2, (2, 3), insert_window=3), 2, 4)[0] == [0, 1, 2]
        assert edit(flat, filled(5, 2, (3,), insert_window=5, insert_replaces=True), 2, 2)[0] == [0, 3]
        assert edit(flat, filled(5, 1, (4, 3), insert_window=5, insert_replaces=True), 1, 1)[0] == [3]

    def test_ban_then_insertion_brings_back_a_dropped_key_expert(self) -> None:
        table = filled(6, 3, (4, 5), insert_window=4, ban=True, ban_k_min=1, ban_lambda=1.0)
        # the base {1, 2, 5} shrinks to {1}; key expert 5 returns (rank 2), key expert 4 is outside the top 4.
        assert edit(self.SCORES, table, 3, 5) == ([1, 5], [0.3, 0.2])

    def test_the_window_follows_the_ranking_and_the_weights_the_scores(self) -> None:
        scores = torch.tensor([[0.50, 0.40, 0.30, 0.20]])
        ranking = scores + torch.tensor([[-1.0, 0.0, 0.0, 0.3]])  # ranked 3, 1, 2, 0: the router chose {3, 1}
        base = torch.tensor([[3, 1]], dtype=torch.int32)
        outside = filled(4, 2, (0,), insert_window=3).layer(0)  # best score, but last in the router's own ranking
        assert edit_selection(scores.log(), scores, base, outside, 3, False, ranking_TE=ranking)[1].tolist() == [
            [1, 3, 1]
        ]
        inside = filled(4, 2, (2,), insert_window=3, insert_replaces=True).layer(0)
        weights, ids, kept = edit_selection(scores.log(), scores, base, inside, 3, False, ranking_TE=ranking)
        assert ids[kept].tolist() == [1, 2]  # evicts 3: the lowest weight, although the router ranked it first
        assert weights.allclose(torch.tensor([[0.4, 0.3, 0.0]]))

    def test_boost_weights_are_the_boosted_scores(self) -> None:
        table = RouterTable.neutral(1, 3, 2)
        table.logit_bias_PLE[0, 0, 2] = math.log(4.0)
        weights, ids, _ = route(torch.tensor([[math.log(3.0), math.log(2.0), 0.0]]), table.layer(0), 2, 2, False)
        assert ids.tolist() == [[2, 0]]
        assert weights.allclose(torch.tensor([[4 / 9, 3 / 9]]))

    def test_a_bias_of_minus_infinity_removes_an_expert(self) -> None:
        table = RouterTable.neutral(1, 3, 2)
        table.logit_bias_PLE[0, 0, 0] = -INF
        assert route(torch.tensor([[INF, 1.0, 2.0]]), table.layer(0), 2, 2, True)[1].tolist() == [[2, 1]]


class TestShapes:
    def test_base_ids_in_any_order_and_padding_rows(self) -> None:
        scores = torch.tensor([[0.1, 0.5, 0.4]] * 2)
        base = torch.tensor([[2, 1], [-1, -1]], dtype=torch.int32)
        neutral = RouterTable.neutral(1, 3, 2).layer(0)
        weights, ids, kept = edit_selection(scores.log(), scores, base, neutral, 2, False)
        assert ids.tolist() == [[1, 2], [0, 0]] and kept[0].all() and kept[1, 0]
        assert weights[0].allclose(torch.tensor([0.5, 0.4])), "of a padding row only the ids have to be valid"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("tokens", [0, 1, 5])
    def test_types_of_the_outputs(self, dtype: torch.dtype, tokens: int) -> None:
        table = filled(8, 3, (7,), insert_window=8, ban=True, ban_k_min=1)
        weights, ids, kept = route(torch.zeros(tokens, 8, dtype=dtype), table.layer(0), 3, 4, True)
        assert (weights.dtype, ids.dtype, kept.dtype) == (torch.float32, torch.int32, torch.bool)
        assert weights.shape == ids.shape == kept.shape == (tokens, 4)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_each_token_under_its_own_policy_row(self, dtype: torch.dtype) -> None:
        table = RouterTable.neutral(1, 6, 3, rows=4)
        table.keep[1] = 1
        table.key_PLE[2, 0, 5], table.insert_window[2], table.insert_replaces[2] = True, 6, True
        table.ban[3], table.ban_k_min[3], table.sensitivity[3], table.logit_bias_PLE[3, 0, 4] = True, 1, 0.7, 2
        logits = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
        row_T = torch.arange(32, dtype=dtype) % 4
        mixed = route(logits, table.layer(0), 3, 4, True, row_T=row_T)
        kept_by_row = set()
        for row in range(4):
            alone = RouterTable(**{f.name: getattr(table, f.name)[row : row + 1] for f in fields(RouterTable)})
            expected = route(logits[row_T == row], alone.layer(0), 3, 4, True)
            for got, want in zip(mixed, expected, strict=True):
                assert torch.equal(got[row_T == row], want)
            kept_by_row.add(tuple(expected[1].flatten().tolist()))
        assert len(kept_by_row) == 4
        assert torch.equal(route(logits, table.layer(0), 3, 4, True)[1][row_T == 0], mixed[1][row_T == 0])

    def test_compiled_code_sees_a_policy_that_changes_in_place(self) -> None:
        """One whole graph (no break on a value), and a swap after compilation takes effect, as vLLM needs it."""
        table, pick = RouterTable.neutral(1, 6, 2), filled(6, 2, (0,), insert_window=6, insert_replaces=True)
        layer = table.layer(0)

        def forward(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return route(logits, layer, 2, 3, True)

        compiled = torch.compile(forward, backend="eager", fullgraph=True)
        logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
        before = compiled(logits)
        table.copy_(pick)
        after = compiled(logits)
        assert torch.equal(after[1], forward(logits)[1]) and not torch.equal(after[1], before[1])


class TestTable:
    def test_copy_changes_the_views_and_not_the_memory(self) -> None:
        table, other = RouterTable.neutral(2, 4, 2), RouterTable.neutral(2, 4, 2)
        layer, address = table.layer(1), table.keep.data_ptr()
        other.keep[0, 1] = 1
        other.key_PLE[0, 1, 3] = True
        assert table.copy_(other) is table
        assert table.keep.data_ptr() == address
        assert layer.keep.tolist() == [1] and layer.key_PE.tolist() == [[False, False, False, True]]
        other.keep.fill_(2)
        assert layer.keep.tolist() == [1]

    @pytest.mark.parametrize("shape", [(3, 4, 2, 1), (2, 5, 2, 1), (2, 4, 2, 2)])
    def test_copy_refuses_another_model_and_stays_as_it_is(self, shape: tuple[int, int, int, int]) -> None:
        table = RouterTable.neutral(2, 4, 2)
        before = table.digest()
        with pytest.raises(ValueError, match="built for another model"):
            table.copy_(RouterTable.neutral(shape[0], shape[1], shape[2], rows=shape[3]))
        assert table.digest() == before

    def test_digest_follows_every_field(self) -> None:
        digests = {RouterTable.neutral(2, 4, 2).digest(), RouterTable.neutral(2, 5, 2).digest()}
        assert RouterTable.neutral(2, 4, 2).digest() in digests
        for name in (*COLUMNS, "logit_bias_PLE", "key_PLE"):
            table = RouterTable.neutral(2, 4, 2)
            values = getattr(table, name)
            values[-1, -1] = ~values[-1, -1] if values.dtype == torch.bool else values[-1, -1] + 1
            digests.add(table.digest())
        assert len(digests) == 2 + len(COLUMNS) + 2

    def test_every_column_has_a_place_of_its_own(self) -> None:
        places = [column.index for column in COLUMNS.values()]
        assert len(set(places)) == len(places) and max(places) < WIDTH

    def test_a_layer_is_a_view_of_the_table(self) -> None:
        table = RouterTable.neutral(3, 4, 3, rows=2)
        layer = table.layer(1)
        assert len(fields(RouterTable)) == len(fields(LayerTable))
        for name, value in (("keep", 2.0), ("min_ratio", 0.5)):
            getattr(layer, name)[1] = value
            assert getattr(table, name)[1, 1] == value and (getattr(table, name) == value).sum() == 1
        copy = layer.clone()
        table.keep.fill_(1)
        assert layer.keep.tolist() == [1, 1] and copy.keep.tolist() == [3, 2]
        moved = layer.to("cpu")
        assert moved.keep.tolist() == [1, 1] and moved.logit_bias_PE.shape == (2, 4)

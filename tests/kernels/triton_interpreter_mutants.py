"""Faults planted in the kernel's source, each of which the comparison must see. For triton_interpreter.py."""

from __future__ import annotations

MUTANTS: dict[str, tuple[str, str]] = {
    "ties go to the higher id": (
        "reverse_T = tl.max(tl.where(left_TE == best_T[:, None], reverse_1E, -1), 1)",
        "reverse_T = tl.min(tl.where(left_TE == best_T[:, None], reverse_1E, 1024), 1)",
    ),
    "NaN not cleaned": ('tl.where(x == x, tl.minimum(x, LARGEST), float("-inf"))', "tl.minimum(x, LARGEST)"),
    "infinity not cleaned": ("tl.minimum(x, LARGEST)", "x"),
    "-0 differs from 0": (' float("-inf")) + 0.0', ' float("-inf"))'),
    "boost used for selection only": (
        "weight_TS = tl.where(kept_TS, _score(_logit(key_TS)",
        "unbiased_TS = tl.load(bias_ptr + row_T[:, None] * bias_stride + id_TS)\n"
        "    weight_TS = tl.where(kept_TS, _score(_logit(key_TS) - unbiased_TS",
    ),
    "boost of row 0": ("row_T[:, None] * bias_stride", "0 * row_T[:, None]"),
    "policy of row 0": ("row_T * values_stride", "row_T * 0"),
    "base in the order of the ranking": ("key_TS = _sorted(key_TS, slot_1S, K)", "key_TS = key_TS + 0"),
    "base ignores the correction": (
        "SIGMOID, HAS_CORRECTION)\n    for slot",
        "SIGMOID, False)\n    for slot",
    ),
    "a corrected slot's logit lacks the boost": ("bias_T1 + id_TS, is_base_TS", "bias_T1 + 0 * id_TS, is_base_TS"),
    "insertion lacks the boost": (
        "bias_T1 + expert_1E, reads_TE)\n        rank_TE",
        "bias_T1 + 0 * expert_1E, reads_TE)\n        rank_TE",
    ),
    "ban reads the top two": ("slot_1S < 3", "slot_1S < 2"),
    "flatness not clamped": ("tl.minimum(tl.maximum(flatness_T, 0.0), 1.0)", "flatness_T"),
    "count not clamped": ("tl.minimum(tl.maximum(count_T, k_min_T), keep_T)", "count_T"),
    "rounds half up": (
        "(k_min_T + (keep_T - k_min_T) * more_T + ROUND) - ROUND",
        "tl.floor(k_min_T + (keep_T - k_min_T) * more_T + 0.5)",
    ),
    "a fraction is cut": ("whole_T + (uniform_T < count_T - whole_T)", "whole_T + (uniform_T < 0.0)"),
    "a fraction goes by the wrong logits": (
        "tl.where(slot_1S < K, _mixed(bits_TS)",
        "tl.where(slot_1S < 1, _mixed(bits_TS)",
    ),
    "a fraction ignores the ranks": ("((slot_1S + 1).to(tl.uint32) * GOLDEN)", "(slot_1S * 0).to(tl.uint32)"),
    "a fraction is unevenly mixed": ("(_mixed(token_T) >> UNUSED)", "(token_T >> UNUSED)"),
    "min_ratio is strict": ("share_TS >= (tl.load(values_T + MIN_RATIO)", "share_TS > (tl.load(values_T + MIN_RATIO)"),
    "mass takes one more": ("- mass_TS < tl.load(values_T + MASS)", "- mass_TS <= tl.load(values_T + MASS)"),
    "raw mass is divided": ("RAW_MASS)[:, None] > 0, weight_TS", "RAW_MASS)[:, None] > 0, share_TS"),
    "tail summed from the front": ("share_TS * share_TS, 1, reverse=True)", "share_TS * share_TS, 1)"),
    "floor ignored": ("tl.maximum(left_T, tl.load(values_T + FLOOR))", "left_T"),
    "thresholds beat nothing": ("tl.minimum(count_T, tl.maximum(left_T", "tl.minimum(keep_T, tl.maximum(left_T"),
    "window one too wide": ("(ahead_TE.to(tl.int32), 1) < window_T", "(ahead_TE.to(tl.int32), 1) <= window_T"),
    "window goes by logits, not by the ranking": (
        "if HAS_CORRECTION:\n            rank_T1",
        "if False:\n            rank_T1",
    ),
    "window ignores lower ids": ("(reverse_1E > reverse_T[:, None]))", "(reverse_1E < 0))"),
    "a key expert is evicted": ("(key_TS > ANYBODY) & (is_key_TS == 0)", "(key_TS > ANYBODY)"),
    "an inserted expert is evicted": ("evictable_TS &= enters_TS == 0", "evictable_TS &= key_TS > ANYBODY"),
    "the best is evicted": (
        "worst_T1 = tl.min(tl.where(replaces_T1 & (evictable_TS == 0), UNTOUCHABLE, key_TS), 1)[:, None]",
        "worst_T1 = tl.min(key_TS, 1)[:, None]\n"
        "        best_T1 = tl.max(tl.where(evictable_TS, key_TS, NOBODY), 1)[:, None]\n"
        "        worst_T1 = tl.where(replaces_T1, best_T1, worst_T1)",
    ),
    "a kept key expert enters twice": ("(best_T != NEVER) & (is_kept_T == 0)", "(best_T != NEVER)"),
    "a full selection takes any key expert": ("(replaces_T1 | (key_T1 > worst_T1))", "(key_T1 > NOBODY)"),
    "inserted experts stay at the end": ("key_TS = _sorted(key_TS, slot_1S, S)", "key_TS = key_TS + 0"),
    "renormalised before the edit": (
        "weight_TS / tl.maximum(tl.sum(weight_TS, 1), TINY)[:, None]",
        "weight_TS / tl.maximum(tl.sum(tl.where(slot_1S < K, score_TS, 0.0), 1), TINY)[:, None]",
    ),
    "scale forgotten": ("weight_TS * scale", "weight_TS"),
    "skip writes a copy": ("[:, None] > 0, -1, filler_T1)", "[:, None] > 1, -1, filler_T1)"),
    "padding counted": ("is_token_T, 1) == 0", "is_token_T, 1) >= 0"),
    "banned slots counted": ("kept_TS & counts_T[:, None]", "(slot_1S < S) & counts_T[:, None]"),
    "tokens counted in row 0": ("row_T * tokens_stride", "row_T * 0"),
    "stock answers under a boost": ("& (any_bias_T == 0)", ""),
    "stock answers under insertion": ("return neutral_T & (", "return neutral_T | ("),
    "tokens behind the last are written": ("is_token_T[:, None] & (slot_1S < S)\n", "(slot_1S < S)\n"),
}
"""Name: (text that must stand in the source, what it becomes)."""

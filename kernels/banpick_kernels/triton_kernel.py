# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The kernel that `triton_router.fused_route` launches, and its parts.

One warp routes BLOCK_T tokens; nothing is shared between warps, so there is no shared memory and no barrier. A float32
logit is mapped to the int32 of the same order, and one int64 holds an expert: ordered logit << 16 | (E_PAD - 1 - id).
The larger key is the better expert, equal logits go to the lower id, and both logit and id can be read back.

The experts of a token are wide (E over 32 lanes), so only their ordered logits stay in registers; everything after the
K rounds of selection happens on the keys of the slots, one lane a slot. docs/kernel.md walks through it.

Policy values are read from the device table at run time: a captured graph replays whatever the table holds by then.
What the policy keeps must be at least 1 (`keep`, `ban_k_min` and `floor`), as in every table that a policy makes.

Shape suffixes: T tokens, E experts, S slots, both padded to a power of two; a 1 broadcasts.
"""

import triton
import triton.language as tl

from banpick_kernels import stochastic_rounding
from banpick_kernels.table import COLUMNS

KEEP, BAN, K_MIN = (tl.constexpr(COLUMNS[name].index) for name in ("keep", "ban", "ban_k_min"))
LAMBDA, SENSITIVITY = (tl.constexpr(COLUMNS[name].index) for name in ("ban_lambda", "sensitivity"))
RATIO_MIN, RATIO_MAX = (tl.constexpr(COLUMNS[name].index) for name in ("ratio_min", "ratio_max"))
FLOOR, MIN_RATIO = (tl.constexpr(COLUMNS[name].index) for name in ("floor", "min_ratio"))
MASS, RAW_MASS = (tl.constexpr(COLUMNS[name].index) for name in ("mass", "raw_mass"))
MIN_WEIGHT, TAIL_SQUARE = (tl.constexpr(COLUMNS[name].index) for name in ("min_weight", "tail_square"))
WINDOW, REPLACES, SKIPS = (tl.constexpr(COLUMNS[name].index) for name in ("insert_window", "insert_replaces", "skips"))

OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
"""Of every launch and compilation. Fused multiply-adds would round the rules' arithmetic unlike the reference."""


def max_registers(num_experts: int, block_tokens: int, has_correction: bool) -> int:
    """The bound given to ptxas (`maxnreg`), which it keeps without spilling: tests/kernels/test_triton_compile.py."""
    return 48 if num_experts <= 128 and not has_correction and block_tokens == 1 else 96


NEVER = tl.constexpr(-(2**31))
"""Below the ordered value of every float, -inf included: an expert that cannot be chosen (again)."""
NOBODY = tl.constexpr(-(2**62))
"""Below every key. NOBODY + 1 + slot is an empty slot, so that empty slots differ."""
ANYBODY = tl.constexpr(-(2**61))
"""Between the two: a key above it is an expert."""
UNTOUCHABLE = tl.constexpr(2**62)
"""Above every key."""
TINY = tl.constexpr(2.0**-126)
LARGEST = tl.constexpr((2 - 2.0**-23) * 2.0**127)
ROUND = tl.constexpr(1.5 * 2**23)
"""Adding and subtracting it rounds a small float32 to the nearest integer, half to even."""
GOLDEN, FIRST, SECOND = (tl.constexpr(getattr(stochastic_rounding, name)) for name in ("GOLDEN", "FIRST", "SECOND"))
UNUSED = tl.constexpr(32 - stochastic_rounding.BITS)
"""Bits of the hash below those that decide."""
STEP = tl.constexpr(2.0**-stochastic_rounding.BITS)


@triton.jit
def _clean(x):
    return tl.where(x == x, tl.minimum(x, LARGEST), float("-inf")) + 0.0  # + 0.0 turns -0.0 into 0.0


@triton.jit
def _ordered(x):
    """The int32 that compares as the float32 does."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _logit(key):
    ordered = (key >> 16).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _expert(key, E: tl.constexpr, E_PAD: tl.constexpr):
    return tl.minimum(E_PAD - 1 - (key.to(tl.int32) & (E_PAD - 1)), E - 1)


@triton.jit
def _score(z, top, total, SIGMOID: tl.constexpr):
    if SIGMOID:  # noqa: SIM108 - decided when compiling
        score = 1.0 / (1.0 + tl.exp(-z))
    else:
        score = tl.exp(z - top) / total
    return score


@triton.jit
def _logits(logits_at, bias_at, reads):
    """The cleaned float32 logits at the two pointers, policy bias included; -inf where `reads` is off."""
    logit = tl.load(logits_at, reads, float("-inf")).to(tl.float32)
    return _clean(logit + tl.load(bias_at, reads, 0.0))


@triton.jit
def _ranks(
    z_TE, top_T, total_T, correction_ptr, expert_1E, is_expert_1E, SIGMOID: tl.constexpr, HAS_CORRECTION: tl.constexpr
):
    """The int32 that the base selection ranks by: of score + correction, else of the logit. NEVER behind expert E."""
    if HAS_CORRECTION:
        correction_1E = tl.load(correction_ptr + expert_1E, is_expert_1E, 0.0).to(tl.float32)
        z_TE = _clean(_score(z_TE, top_T[:, None], total_T[:, None], SIGMOID) + correction_1E)
    return tl.where(is_expert_1E, _ordered(z_TE), NEVER)


@triton.jit
def _best(left_TE, reverse_1E):
    """The largest value of a row, and E_PAD - 1 - the lowest id that has it: two int32 reductions (`redux`)."""
    best_T = tl.max(left_TE, 1)
    reverse_T = tl.max(tl.where(left_TE == best_T[:, None], reverse_1E, -1), 1)
    return best_T, reverse_T


@triton.jit
def _sorted(key_TS, slot_1S, ROUNDS: tl.constexpr):
    out_TS = tl.full(key_TS.shape, NOBODY, tl.int64)
    for slot in range(ROUNDS):
        best_T = tl.max(key_TS, 1)
        out_TS = tl.where(slot_1S == slot, best_T[:, None], out_TS)
        key_TS = tl.where(key_TS == best_T[:, None], NOBODY, key_TS)
    return out_TS


@triton.jit
def _mixed(bits):
    """Every bit of the uint32 hangs on every bit given; products wrap."""
    bits = (bits ^ (bits >> 16)) * FIRST
    bits = (bits ^ (bits >> 15)) * SECOND
    return bits ^ (bits >> 16)


@triton.jit
def _rounded(count_T, logit_TS, slot_1S, K: tl.constexpr):
    """`stochastic_rounding.rounded` [T]: up with the probability of the fraction, by a hash of the first K logits."""
    bits_TS = logit_TS.to(tl.uint32, bitcast=True) ^ ((slot_1S + 1).to(tl.uint32) * GOLDEN)
    token_T = tl.sum(tl.where(slot_1S < K, _mixed(bits_TS).to(tl.int64), 0), 1).to(tl.uint32)
    uniform_T = (_mixed(token_T) >> UNUSED).to(tl.float32) * STEP
    whole_T = tl.floor(count_T)
    return whole_T + (uniform_T < count_T - whole_T).to(tl.float32)


@triton.jit
def _keep_count(weight_TS, logit_TS, slot_1S, values_T, K: tl.constexpr):
    """`reference.keep_count` [T] of base scores that are 0 after the first K."""
    total_T = tl.maximum(tl.sum(weight_TS, 1), TINY)
    share_TS = weight_TS / total_T[:, None]

    k_min_T, keep_T = tl.load(values_T + K_MIN), tl.load(values_T + KEEP)
    ratio_max_T = tl.load(values_T + RATIO_MAX)
    span_T = ratio_max_T - tl.load(values_T + RATIO_MIN)
    ratio_T = tl.sum(tl.where(slot_1S < 3, weight_TS, 0.0), 1) / total_T
    flatness_T = (ratio_max_T - ratio_T) / tl.where(span_T > 0, span_T, float("inf"))
    flatness_T = tl.minimum(tl.maximum(flatness_T, 0.0), 1.0)
    more_T = tl.load(values_T + LAMBDA) * 0.5 * (tl.load(values_T + SENSITIVITY) + flatness_T)
    count_T = (k_min_T + (keep_T - k_min_T) * more_T + ROUND) - ROUND
    count_T = tl.minimum(tl.maximum(count_T, k_min_T), keep_T)
    count_T = tl.where(tl.load(values_T + BAN) > 0, count_T, _rounded(keep_T, logit_TS, slot_1S, K))

    first_T = tl.max(share_TS, 1)
    left_TS = share_TS >= (tl.load(values_T + MIN_RATIO) * first_T)[:, None]
    mass_TS = tl.where(tl.load(values_T + RAW_MASS)[:, None] > 0, weight_TS, share_TS)
    left_TS &= tl.cumsum(mass_TS, 1) - mass_TS < tl.load(values_T + MASS)[:, None]
    left_TS &= share_TS >= tl.load(values_T + MIN_WEIGHT)[:, None]
    left_TS &= tl.cumsum(share_TS * share_TS, 1, reverse=True) >= tl.load(values_T + TAIL_SQUARE)[:, None]
    left_T = tl.sum((left_TS & (slot_1S < K)).to(tl.float32), 1)
    return tl.minimum(count_T, tl.maximum(left_T, tl.load(values_T + FLOOR)))


@triton.jit
def _insert(
    key_TS, order_TE, rank_TE, key_rows_T, values_T, count, expert_1E, reverse_1E, slot_1S,
    E: tl.constexpr, E_PAD: tl.constexpr, HAS_CORRECTION: tl.constexpr,
):  # fmt: skip
    """`reference.insert_keys`: the keys after up to `count` key experts came in, unsorted. Empty slots stay below all.

    Adding overwrites the worst slot (an empty one while there is one), replacing the worst that is no key expert.
    """
    window_T, replaces_T1 = tl.load(values_T + WINDOW), tl.load(values_T + REPLACES)[:, None] > 0
    is_key_TS = tl.load(key_rows_T[:, None] + _expert(key_TS, E, E_PAD))
    evictable_TS = (key_TS > ANYBODY) & (is_key_TS == 0)
    is_key_TE = tl.load(key_rows_T[:, None] + expert_1E, expert_1E < E, 0)
    wanted_TE = tl.where(is_key_TE != 0, order_TE, NEVER)
    for _ in range(count):
        best_T, reverse_T = _best(wanted_TE, reverse_1E)
        is_best_TE = reverse_1E == reverse_T[:, None]
        wanted_TE = tl.where(is_best_TE, NEVER, wanted_TE)
        rank_T1 = best_T[:, None]
        if HAS_CORRECTION:
            rank_T1 = tl.max(tl.where(is_best_TE, rank_TE, NEVER), 1)[:, None]
        ahead_TE = (rank_TE > rank_T1) | ((rank_TE == rank_T1) & (reverse_1E > reverse_T[:, None]))
        in_window_T = tl.sum(ahead_TE.to(tl.int32), 1) < window_T

        key_T1 = ((best_T.to(tl.int64) << 16) | reverse_T)[:, None]
        is_kept_T = tl.max((key_TS == key_T1).to(tl.int32), 1) > 0
        worst_T1 = tl.min(tl.where(replaces_T1 & (evictable_TS == 0), UNTOUCHABLE, key_TS), 1)[:, None]
        enters_T1 = (in_window_T & (best_T != NEVER) & (is_kept_T == 0))[:, None]
        enters_TS = enters_T1 & (key_TS == worst_T1) & (replaces_T1 | (key_T1 > worst_T1))
        key_TS = tl.where(enters_TS, key_T1, key_TS)
        evictable_TS &= enters_TS == 0
    return key_TS


@triton.jit
def _is_neutral(values_T, any_bias_T, any_key_T, K: tl.constexpr):
    """[T]: the policy row changes nothing, so that the stock router's own answer stands."""
    neutral_T = (tl.load(values_T + KEEP) == K) & (tl.load(values_T + BAN) == 0) & (any_bias_T == 0)
    neutral_T &= (tl.load(values_T + MIN_RATIO) <= 0) & (tl.load(values_T + MASS) >= 2)
    neutral_T &= (tl.load(values_T + MIN_WEIGHT) <= 0) & (tl.load(values_T + TAIL_SQUARE) <= 0)
    return neutral_T & ((tl.load(values_T + WINDOW) <= 0) | (any_key_T == 0))


@triton.jit
def route_kernel(
    weights_ptr, ids_ptr, logits_ptr, logits_stride, values_ptr, values_stride, bias_ptr, bias_stride, key_ptr,
    key_stride, correction_ptr, row_ptr, padding_ptr, tokens_ptr, tokens_stride, usage_ptr, usage_stride,
    stock_weights_ptr, stock_ids_ptr, scale, num_tokens,
    E: tl.constexpr, E_PAD: tl.constexpr, K: tl.constexpr, S: tl.constexpr, S_PAD: tl.constexpr,
    SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, HAS_CORRECTION: tl.constexpr, HAS_ROWS: tl.constexpr,
    HAS_PADDING: tl.constexpr, HAS_COUNTERS: tl.constexpr, HAS_STOCK: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Route BLOCK_T tokens. Pointers whose HAS_ flag is off are never read."""
    token_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token_T = token_T < num_tokens
    # No vector loads: neighbouring lanes hold neighbouring experts (still one coalesced request), the layout of the
    # slots too, so that nothing is reordered through shared memory.
    expert_1E = tl.max_contiguous(tl.arange(0, E_PAD), 1)[None, :]
    reverse_1E = E_PAD - 1 - expert_1E
    slot_1S = tl.arange(0, S_PAD)[None, :]
    row_T = tl.zeros([BLOCK_T], tl.int32)
    if HAS_ROWS:
        row_T = tl.load(row_ptr + token_T, is_token_T, 0).to(tl.int32)
    values_T, key_rows_T = values_ptr + row_T * values_stride, key_ptr + row_T * key_stride

    is_expert_1E = expert_1E < E
    logits_T1, bias_T1 = logits_ptr + token_T[:, None] * logits_stride, bias_ptr + row_T[:, None] * bias_stride
    reads_TE = is_token_T[:, None] & is_expert_1E
    if HAS_STOCK:
        any_bias_T = tl.max((tl.load(bias_T1 + expert_1E, reads_TE, 0.0) != 0).to(tl.int32), 1)
    z_TE = _logits(logits_T1 + expert_1E, bias_T1 + expert_1E, reads_TE)

    top_T, total_T = tl.zeros([BLOCK_T], tl.float32), tl.full([BLOCK_T], 1.0, tl.float32)
    if not SIGMOID:
        top_T = _logit(tl.max(_ordered(z_TE), 1).to(tl.int64) << 16)
        top_T = tl.maximum(top_T, -LARGEST)  # -inf - -inf would be NaN
        total_T = tl.maximum(tl.sum(tl.exp(z_TE - top_T[:, None]), 1), TINY)

    key_TS = tl.full([BLOCK_T, S_PAD], NOBODY, tl.int64)
    left_TE = _ranks(z_TE, top_T, total_T, correction_ptr, expert_1E, is_expert_1E, SIGMOID, HAS_CORRECTION)
    for slot in range(K):
        best_T, reverse_T = _best(left_TE, reverse_1E)
        left_TE = tl.where(reverse_1E == reverse_T[:, None], NEVER, left_TE)
        key_TS = tl.where(slot_1S == slot, ((best_T.to(tl.int64) << 16) | reverse_T)[:, None], key_TS)
    if HAS_CORRECTION:  # the keys hold ranks: read the logits again
        id_TS, is_base_TS = _expert(key_TS, E, E_PAD), is_token_T[:, None] & (slot_1S < K)
        order_TS = _ordered(_logits(logits_T1 + id_TS, bias_T1 + id_TS, is_base_TS)).to(tl.int64)
        key_TS = tl.where(slot_1S < K, (order_TS << 16) | (key_TS & (E_PAD - 1)), NOBODY)
        key_TS = _sorted(key_TS, slot_1S, K)

    score_TS = _score(_logit(key_TS), top_T[:, None], total_T[:, None], SIGMOID)
    kept_T = _keep_count(tl.where(slot_1S < K, score_TS, 0.0), _logit(key_TS), slot_1S, values_T, K)
    key_TS = tl.where((slot_1S < kept_T[:, None]) & (slot_1S < K), key_TS, slot_1S.to(tl.int64) + (NOBODY + 1))

    num_keys_T = tl.sum((tl.load(key_rows_T[:, None] + expert_1E, is_expert_1E, 0) != 0).to(tl.int32), 1)
    window_T = tl.load(values_T + WINDOW)
    come_T = tl.where(window_T > 0, num_keys_T, 0)
    if not HAS_CORRECTION:  # the window is in the order that the keys come in: no later one stands within it
        come_T = tl.minimum(come_T, window_T.to(tl.int32))
    count = tl.max(come_T, 0)
    if count > 0:
        # Read and ranked again: carried through the rounds, both would cost E / 32 registers each.
        z_TE = _logits(logits_T1 + expert_1E, bias_T1 + expert_1E, reads_TE)
        rank_TE = _ranks(z_TE, top_T, total_T, correction_ptr, expert_1E, is_expert_1E, SIGMOID, HAS_CORRECTION)
        order_TE = tl.where(is_expert_1E, _ordered(z_TE), NEVER)
        key_TS = _insert(
            key_TS, order_TE, rank_TE, key_rows_T, values_T, count, expert_1E, reverse_1E, slot_1S,
            E, E_PAD, HAS_CORRECTION,
        )  # fmt: skip
        key_TS = _sorted(key_TS, slot_1S, S)

    kept_TS = (key_TS > ANYBODY) & (slot_1S < S)
    id_TS = _expert(key_TS, E, E_PAD)
    weight_TS = tl.where(kept_TS, _score(_logit(key_TS), top_T[:, None], total_T[:, None], SIGMOID), 0.0)
    if RENORMALIZE:
        weight_TS = weight_TS / tl.maximum(tl.sum(weight_TS, 1), TINY)[:, None]
    if HAS_STOCK:
        is_stock_T1 = _is_neutral(values_T, any_bias_T, num_keys_T, K)[:, None]
        stock_at_TS = token_T[:, None] * K + slot_1S
        reads_TS = is_stock_T1 & is_token_T[:, None] & (slot_1S < K)
        stock_id_TS = tl.load(stock_ids_ptr + stock_at_TS, reads_TS, -1).to(tl.int32)
        stock_weight_TS = tl.load(stock_weights_ptr + stock_at_TS, reads_TS, 0.0).to(tl.float32)
        id_TS = tl.where(is_stock_T1, stock_id_TS, id_TS)
        weight_TS = tl.where(is_stock_T1, stock_weight_TS, weight_TS)
        kept_TS = tl.where(is_stock_T1, stock_id_TS >= 0, kept_TS)
        shown_TS = kept_TS | reads_TS
    else:
        shown_TS = kept_TS

    filler_T1 = tl.sum(tl.where(slot_1S == 0, id_TS, 0), 1)[:, None]
    filler_T1 = tl.where(tl.load(values_T + SKIPS)[:, None] > 0, -1, filler_T1)
    out_TS, stores_TS = token_T[:, None] * S + slot_1S, is_token_T[:, None] & (slot_1S < S)
    tl.store(weights_ptr + out_TS, weight_TS * scale, stores_TS)
    tl.store(ids_ptr + out_TS, tl.where(shown_TS, id_TS, filler_T1), stores_TS)

    if HAS_COUNTERS:
        counts_T = is_token_T
        if HAS_PADDING:
            counts_T &= tl.load(padding_ptr + token_T, is_token_T, 1) == 0
        tl.atomic_add(tokens_ptr + row_T * tokens_stride, tl.full([BLOCK_T], 1, tl.int64), counts_T, sem="relaxed")
        usage_at_TS = usage_ptr + row_T[:, None] * usage_stride + id_TS
        one_TS = tl.full([BLOCK_T, S_PAD], 1, tl.int64)
        tl.atomic_add(usage_at_TS, one_TS, kept_TS & counts_T[:, None], sem="relaxed")

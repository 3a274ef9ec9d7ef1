"""Problems of the three domains, drawn from a seeded generator; the answer is always computed, never guessed.

A problem is a prompt ending in `=` and a response `step;step;answer`; only the answer is graded. A prompt's
split follows from its hash, so no test prompt is ever trained on, whatever the seed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable
from typing import NamedTuple

LETTERS = "abcdefgh"
NUM_ENTITIES = 400
FACT_SEED = 20260922
SPLIT_OF_BUCKET = {0: "test", 1: "test", 2: "dev", 3: "calibration"}
NUM_BUCKETS = 20
DOMAIN_MIX = {"math": 1.5, "code": 1.0, "knowledge": 1.1}


class Exercise(NamedTuple):
    """One exercise. `task` is the sub-task inside the domain, `response` includes the steps."""

    domain: str
    task: str
    prompt: str
    response: str

    @property
    def answer(self) -> str:
        return self.response.rsplit(";", 1)[-1]


def split_of(prompt: str) -> str:
    """`train`, `calibration`, `dev` or `test`, from the prompt alone."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return SPLIT_OF_BUCKET.get(int.from_bytes(digest[:4], "big") % NUM_BUCKETS, "train")


# ---------------------------------------------------------------- math


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"{a}+{b}", f"{a + b}"


def _subtract(rng: random.Random) -> tuple[str, str]:
    a, b = sorted((rng.randint(10, 99), rng.randint(10, 99)), reverse=True)
    return f"{a}-{b}", f"{a - b}"


def _three_terms(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    c = rng.randint(1, min(a + b, 99))
    plus = rng.random() < 0.5
    total = a + b + (c if plus else -c)
    return f"{a}+{b}{'+' if plus else '-'}{c}", f"{a + b};{total}"


def _add_hundreds(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    return f"{a}+{b}", f"{a + b}"


def _multiply(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(11, 99), rng.randint(2, 9)
    tens, units = a // 10 * 10 * b, a % 10 * b
    return f"{a}*{b}", f"{tens};{units};{a * b}"


def _modulo(rng: random.Random) -> tuple[str, str]:
    a, b, m = rng.randint(1, 60), rng.randint(1, 60), rng.randint(2, 9)
    return f"({a}+{b})%{m}", f"{a + b};{(a + b) % m}"


# ---------------------------------------------------------------- code


def _word(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(low, high)))


def _reverse(rng: random.Random) -> tuple[str, str]:
    s = _word(rng, 3, 8)
    return f"rev {s}", s[::-1]


def _slice(rng: random.Random) -> tuple[str, str]:
    s = _word(rng, 5, 9)
    i = rng.randint(0, len(s) - 2)
    j = rng.randint(i + 1, len(s))
    return f"{s}[{i}:{j}]", s[i:j]


def _sort(rng: random.Random) -> tuple[str, str]:
    s = _word(rng, 3, 7)
    return f"sort {s}", "".join(sorted(s))


def _count(rng: random.Random) -> tuple[str, str]:
    s = _word(rng, 4, 9)
    c = rng.choice(s)
    return f"count {c} {s}", str(s.count(c))


def _length(rng: random.Random) -> tuple[str, str]:
    s = _word(rng, 2, 12)
    return f"len {s}", str(len(s))


def _extreme(rng: random.Random) -> tuple[str, str]:
    values = [rng.randint(10, 99) for _ in range(rng.randint(3, 5))]
    name, pick = rng.choice((("max", max), ("min", min)))
    return f"{name} {','.join(map(str, values))}", str(pick(values))


def _running_sum(rng: random.Random) -> tuple[str, str]:
    values = [rng.randint(1, 9) for _ in range(rng.randint(3, 5))]
    sums = [sum(values[: i + 1]) for i in range(len(values))]
    return f"cumsum {','.join(map(str, values))}", ",".join(map(str, sums))


def _compose(rng: random.Random) -> tuple[str, str]:
    s = _word(rng, 3, 6)
    ops: dict[str, Callable[[str], str]] = {
        "rev": lambda x: x[::-1],
        "sort": lambda x: "".join(sorted(x)),
        "dup": lambda x: x + x[-1],
        "tail": lambda x: x[1:],
    }
    outer, inner = rng.sample(sorted(ops), 2)
    step = ops[inner](s)
    return f"{outer} {inner} {s}", f"{step};{ops[outer](step)}"


# ---------------------------------------------------------------- knowledge


class Entity(NamedTuple):
    name: str
    friend: int
    boss: int
    city: str
    job: str
    pet: str
    age: int


def _make_facts() -> list[Entity]:
    rng = random.Random(FACT_SEED)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    names = [a + b for a in syllables for b in syllables if a != b]
    chosen = rng.sample(names, NUM_ENTITIES + 40)
    cities, people = chosen[:20], chosen[40:]
    jobs = ["cook", "poet", "smith", "nurse", "pilot", "judge", "baker", "clerk"]
    pets = ["cat", "dog", "owl", "fox", "hen", "pig", "bee", "rat"]
    return [
        Entity(
            name=name,
            friend=rng.choice([i for i in range(NUM_ENTITIES) if i != me]),
            boss=rng.choice([i for i in range(NUM_ENTITIES) if i != me]),
            city=rng.choice(cities),
            job=rng.choice(jobs),
            pet=rng.choice(pets),
            age=rng.randint(20, 79),
        )
        for me, name in enumerate(people)
    ]


FACTS = _make_facts()


def _one_hop(rng: random.Random) -> tuple[str, str]:
    entity = rng.choice(FACTS)
    relation = rng.choice(("friend", "boss", "city", "job", "pet", "age"))
    value = getattr(entity, relation)
    return f"{entity.name} {relation}", FACTS[value].name if relation in ("friend", "boss") else str(value)


def _two_hop(rng: random.Random) -> tuple[str, str]:
    entity = rng.choice(FACTS)
    relation = rng.choice(("friend", "boss"))
    attribute = rng.choice(("city", "job", "pet", "age"))
    other = FACTS[getattr(entity, relation)]
    return f"{entity.name} {relation} {attribute}", f"{other.name};{getattr(other, attribute)}"


def _older(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(FACTS, 2)
    while a.age == b.age:
        a, b = rng.sample(FACTS, 2)
    return f"older {a.name} {b.name}", f"{a.age},{b.age};{(a if a.age > b.age else b).name}"


def _chain(rng: random.Random) -> tuple[str, str]:
    nodes = rng.sample("abcdefghijklmnopqrstuvwxyz", 5)
    edges = list(itertools.pairwise(nodes))
    rng.shuffle(edges)
    hops = rng.randint(2, 3)
    start = rng.randint(0, len(nodes) - 1 - hops)
    text = " ".join(f"{a}{b}" for a, b in edges)
    return f"{text} {nodes[start]}{hops}", ";".join(nodes[start + 1 : start + 1 + hops])


TASKS: dict[str, dict[str, tuple[float, Callable[[random.Random], tuple[str, str]]]]] = {
    "math": {
        "add": (1.0, _add),
        "subtract": (1.0, _subtract),
        "three_terms": (1.5, _three_terms),
        "add_hundreds": (0.5, _add_hundreds),
        "multiply": (1.0, _multiply),
        "modulo": (1.0, _modulo),
    },
    "code": {
        "reverse": (1.0, _reverse),
        "slice": (1.0, _slice),
        "sort": (1.0, _sort),
        "count": (0.7, _count),
        "length": (0.3, _length),
        "extreme": (0.7, _extreme),
        "running_sum": (1.0, _running_sum),
        "compose": (1.5, _compose),
    },
    "knowledge": {
        "one_hop": (1.5, _one_hop),
        "two_hop": (1.5, _two_hop),
        "older": (0.8, _older),
        "chain": (0.8, _chain),
    },
}
"""Weight in the mix and generator, per sub-task."""

FACT_TASKS = frozenset({"one_hop"})
"""Sub-tasks that state the facts themselves: always trained on, never tested."""

_PREFIX = {"math": "m:", "code": "c:", "knowledge": "k:"}


def draw(rng: random.Random, domain: str) -> Exercise:
    """One problem of a domain; its split is whatever its prompt hashes to (facts are always `train`)."""
    tasks = TASKS[domain]
    (task,) = rng.choices(list(tasks), [weight for weight, _ in tasks.values()])
    prompt, response = tasks[task][1](rng)
    return Exercise(domain, task, f"{_PREFIX[domain]}{prompt}=", response)


def is_trainable(problem: Exercise) -> bool:
    return problem.task in FACT_TASKS or split_of(problem.prompt) == "train"


def training_batch(seed: int, step: int, size: int) -> list[Exercise]:
    """The examples of one optimiser step, a function of (seed, step) alone."""
    rng = random.Random(f"{seed}/{step}")
    batch: list[Exercise] = []
    domains, weights = list(DOMAIN_MIX), list(DOMAIN_MIX.values())
    while len(batch) < size:
        (domain,) = rng.choices(domains, weights)
        problem = draw(rng, domain)
        if is_trainable(problem):
            batch.append(problem)
    return batch


def evaluation_set(domain: str, split: str, size: int, seed: int) -> list[Exercise]:
    """`size` distinct problems of one split, never seen in training.

    Raises ValueError when the domain cannot supply that many.
    """
    rng = random.Random(f"{seed}/{domain}/{split}")
    found: dict[str, Exercise] = {}
    for _ in range(size * NUM_BUCKETS * 40):
        problem = draw(rng, domain)
        if problem.task not in FACT_TASKS and split_of(problem.prompt) == split:
            found.setdefault(problem.prompt, problem)
        if len(found) == size:
            return list(found.values())
    raise ValueError(f"{domain}/{split}: only {len(found)} of {size} distinct problems exist")

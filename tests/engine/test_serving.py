"""Exported policies behind vLLM's own API server, on loopback, asked by OpenAI's client.

Two starts: one with a single policy, which is killed, and one with several on the same port, which all others share.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from exportable_run import of_label, of_the_embedded_model
from openai import BadRequestError, NotFoundError, OpenAI
from server_process import BLOCK, Server

from banpick_exp.__main__ import main
from banpick_exp.policy.exported import load

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOKEN = "a token of the tests, long enough"
PROMPTS = ["sort 5 3 9 1 ->", "12+7=", "if a then b; a =>", "the colour of ann is", "9 8 7 6", "x = 4; y = x;"]
TOKENS = 12
LABELS = {"fast": "fixed_k k=2", "careful": "pick boost=4 key_experts=8", "spare": "fixed_k k=3"}
Answers = list[list[int]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Exports of a run of the embedded model, as `serve` takes them, by the name they get."""
    folder = tmp_path_factory.mktemp("serving")
    synthetic, run = of_the_embedded_model(folder)
    found = {}
    for name, label in LABELS.items():
        assert main(["export", str(run), of_label(synthetic, label).fingerprint, str(folder / name)]) == 0
        found[name] = str(folder / name)
    found["careful"] += "/@math"
    return found


@pytest.fixture(scope="module")
def expected(tiny_engine: Engine, folders: dict[str, str]) -> dict[str, Answers]:
    """Token ids that the offline engine gives under each policy, each alone."""
    found: dict[str, Answers] = {}
    for name in (*LABELS, "stock"):
        if name == "stock":
            tiny_engine.set_policy("none", {})
        else:
            exported = load(folders[name].removesuffix("/@math"))
            domain = exported.domain("math")
            key, calibration = exported.calibration_key(domain), exported.calibrations[domain]
            if calibration is not None:
                tiny_engine.load_calibration(key, calibration)
            tiny_engine.set_policy(exported.rule.name, exported.params, key)
        answers = tiny_engine.generate(PROMPTS, max_tokens=TOKENS, ignore_eos=True)
        found[name] = [list(answer.token_ids) for answer in answers]
    tiny_engine.set_policy("none", {})
    return found


@pytest.fixture(scope="module")
def server(
    folders: dict[str, str], expected: dict[str, Answers], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Several policies, on the port where a server of one was killed before."""
    logs = tmp_path_factory.mktemp("logs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    former = Server(logs, port, (folders["fast"],), {})
    try:
        former.wait()
        assert answered(former, {}) == expected["fast"]
        assert former.post("/banpick/policy", {"name": "policy", "folder": folders["spare"]}, TOKEN).status_code == 404
    finally:
        former.kill()
    words = (f"careful={folders['careful']}", f"fast={folders['fast']}", "--default", "fast")
    server = Server(logs, port, words, {"BANPICK_ADMIN_TOKEN": TOKEN})
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@functools.cache
def client_of(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(server: Server, prompt: str, model: str = "tiny", **extra: Any) -> list[int]:
    body = {"return_token_ids": True, "ignore_eos": True, **extra}
    completion: Any = client_of(server).completions.create(
        model=model, prompt=prompt, max_tokens=TOKENS, temperature=0, extra_body=body
    )
    return list(completion.choices[0].token_ids)


def answered(server: Server, extra: dict[str, Any], model: str = "tiny") -> Answers:
    return [ask(server, prompt, model, **extra) for prompt in PROMPTS]


def by_policy(name: str) -> dict[str, Any]:
    return {"vllm_xargs": {"routing_policy": name}}


def test_the_policies_answer_differently(expected: dict[str, Answers]) -> None:
    """The control: what follows tells them apart."""
    assert len({str(answers) for answers in expected.values()}) == len(expected)


@pytest.mark.parametrize("name", ["fast", "careful", "stock"])
def test_the_same_answers_as_the_offline_engine(server: Server, expected: dict[str, Answers], name: str) -> None:
    """Token for token; and a second time, from the prefix cache."""
    for _ in range(2):
        assert answered(server, by_policy(name)) == expected[name]
    assert answered(server, {}, model=f"tiny:{name}") == expected[name]


def test_the_default_is_the_operators(server: Server, expected: dict[str, Answers]) -> None:
    assert answered(server, {}) == expected["fast"]


def test_policies_in_parallel(server: Server, expected: dict[str, Answers]) -> None:
    asked = [(name, at) for _ in range(4) for at in range(len(PROMPTS)) for name in ("fast", "careful", "stock")]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda each: ask(server, PROMPTS[each[1]], **by_policy(each[0])), asked))
    assert found == [expected[name][at] for name, at in asked]


def test_no_kv_crosses_policies(server: Server, expected: dict[str, Answers]) -> None:
    """By vLLM's own count of cached tokens: a policy finds what it left, and no other does, whatever the salt."""
    prompt = [10 + at % 7 for at in range(3 * BLOCK)]
    for salt in ({}, {"cache_salt": "mine"}, {"cache_salt": "yours"}):
        for name in ("careful", "stock", "fast"):
            first, again = (cached(server, prompt, {**by_policy(name), **salt}) for _ in range(2))
            assert first == 0 and again == 2 * BLOCK, (name, salt)
    assert cached(server, prompt, {}) == 2 * BLOCK, "the default is fast, by whatever name"


def cached(server: Server, prompt: list[int], extra: dict[str, Any]) -> float:
    """How many tokens of the prompt came from the prefix cache."""
    hits = "vllm:prefix_cache_hits_total"
    before = sum(value for name, value in server.metrics().items() if name.startswith(hits))
    answered = server.post("/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 2, **extra})
    assert answered.status_code == 200, answered.text
    return sum(value for name, value in server.metrics().items() if name.startswith(hits)) - before


def test_every_door_that_names_a_policy(server: Server) -> None:
    """Chat, responses and Anthropic's messages answer as completions do, in either way of naming the policy."""
    client, prompt = client_of(server), PROMPTS[0]
    found = {}
    for name in ("fast", "careful", "stock"):
        limits: Any = {"max_tokens": TOKENS, "temperature": 0}
        said = [{"role": "user", "content": prompt}]
        texts = {
            client.completions.create(model=model, prompt=prompt, extra_body=extra, **limits).choices[0].text
            for model, extra in ((f"tiny:{name}", {}), ("tiny", by_policy(name)))
        }
        for extra in ({"model": f"tiny:{name}"}, {"model": "tiny", **by_policy(name)}):
            chat = server.post("/v1/chat/completions", {"messages": said, **limits, **extra}).json()
            texts.add(chat["choices"][0]["message"]["content"])
            message = server.post("/v1/messages", {"messages": said, **limits, **extra}).json()
            texts.add(message["content"][0]["text"])
            asked = {"input": prompt, "max_output_tokens": TOKENS, "temperature": 0, **extra}
            texts.add(server.post("/v1/responses", asked).json()["output"][0]["content"][0]["text"])
        (found[name],) = texts
    assert len(set(found.values())) == 3, "the control: they differ"


def test_streaming(server: Server, expected: dict[str, Answers]) -> None:
    body = {"return_token_ids": True, "ignore_eos": True}
    stream: Any = client_of(server).completions.create(
        model="tiny:careful", prompt=PROMPTS[0], max_tokens=TOKENS, temperature=0, stream=True, extra_body=body
    )
    ids = [token for chunk in stream for choice in chunk.choices for token in choice.token_ids or ()]
    assert ids == expected["careful"][0]


def test_models_are_listed_with_their_policies(server: Server) -> None:
    names = [model.id for model in client_of(server).models.list()]
    assert names == ["tiny", "tiny:fast", "tiny:careful", "tiny:stock"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_policy_is_a_400_that_lists_the_known(server: Server, stream: bool) -> None:
    with pytest.raises(BadRequestError) as refused:
        client_of(server).completions.create(
            model="tiny", prompt="a", max_tokens=1, stream=stream, extra_body=by_policy("fats")
        )
    assert "Did you mean fast?" in str(refused.value) and "fast, careful, stock" in str(refused.value)


def test_what_else_is_refused(server: Server) -> None:
    client = client_of(server)
    with pytest.raises(NotFoundError):
        client.completions.create(model="tiny:fats", prompt="a", max_tokens=1)
    for extra, model, words in (
        ({"vllm_xargs": {"routing_row": 1}}, "tiny", "routing_row is this server's own"),
        (by_policy("fast"), "tiny:stock", "two policies"),
        ({"use_beam_search": True, "n": 2}, "tiny:stock", "beam search is answered under fast alone"),
    ):
        with pytest.raises(BadRequestError, match=words):
            client.completions.create(model=model, prompt="a", max_tokens=1, extra_body=extra)


def test_metrics_are_what_was_routed(server: Server) -> None:
    before = server.metrics()
    ask(server, PROMPTS[0], cache_salt="never before", **by_policy("fast"))
    ask(server, PROMPTS[0], cache_salt="never before", **by_policy("stock"))
    after = server.metrics()
    prompt = len(server.post("/tokenize", {"model": "tiny", "prompt": PROMPTS[0]}).json()["tokens"])
    tokens = {name: after[at] - before.get(at, 0) for name in ("fast", "careful", "stock")
              if (at := f'banpick_tokens_total{{policy="{name}"}}')}  # fmt: skip
    assert tokens == {"fast": prompt + TOKENS - 1, "stock": prompt + TOKENS - 1, "careful": 0}
    for layer in range(4):
        assert after[f'banpick_mean_kept{{layer="{layer}",policy="fast"}}'] == 2
        assert after[f'banpick_mean_kept{{layer="{layer}",policy="stock"}}'] == 8
        assert 2 <= after[f'banpick_unique_experts{{layer="{layer}",policy="fast"}}'] <= 32
    (info,) = [name for name in after if name.startswith("banpick_policy_info") and 'policy="careful"' in name]
    assert 'domain="math"' in info and 'label="pick boost=4 key_experts=8"' in info and 'default="false"' in info


# ------------------------------------------------------------ the admin call; last, since it changes the server


def test_nobody_swaps_without_the_token(server: Server, folders: dict[str, str]) -> None:
    body = {"name": "fast", "folder": folders["spare"]}
    for token in (None, "x", TOKEN[:-1], f"{TOKEN}x"):
        assert server.post("/banpick/policy", body, token).status_code == 401
    assert httpx.get(f"{server.url}/banpick/policy").status_code == 401
    lines = [line for line in server.said().splitlines() if " audit: 127.0.0.1 asked for POST /banpick/policy" in line]
    assert len(lines) == 4 and all(line.endswith("without the token: refused") for line in lines)


def test_what_cannot_be_swapped(server: Server, folders: dict[str, str], expected: dict[str, Answers]) -> None:
    for body, words in (
        ({"name": "fast", "folder": folders["spare"] + "x"}, "is no folder"),
        ({"name": "stock", "folder": folders["spare"]}, "no name that can be given"),
        ({"name": "fast"}, "the body must be"),
        ({"name": "careful", "folder": folders["careful"].removesuffix("/@math")}, "Name one of math"),
    ):
        refused = server.post("/banpick/policy", body, TOKEN)
        assert refused.status_code == 400 and words in refused.json()["error"]["message"]
    assert answered(server, by_policy("fast")) == expected["fast"]


def test_a_swap_takes_one_name(server: Server, folders: dict[str, str], expected: dict[str, Answers]) -> None:
    """While requests run: each is answered whole by the former policy or the new one."""
    asked = [("fast", at) for _ in range(6) for at in range(len(PROMPTS))]
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, server, PROMPTS[at], **by_policy(name)) for name, at in asked]
        swapped = server.post("/banpick/policy", {"name": "fast", "folder": folders["spare"]}, TOKEN)
        during = [each.result() for each in running]
    assert swapped.status_code == 200 and swapped.json()["policy"] == "fixed_k k=3"
    for (_, at), found in zip(asked, during, strict=True):
        assert found in (expected["fast"][at], expected["spare"][at])
    for name, now in (("fast", "spare"), ("careful", "careful"), ("stock", "stock")):
        assert answered(server, by_policy(name)) == expected[now]
    assert answered(server, {}) == expected["spare"]
    assert server.metrics()['banpick_mean_kept{layer="0",policy="fast"}'] == 3
    assert " audit: 127.0.0.1 put '" in server.said()
    assert server.post("/banpick/policy", {"name": "fast", "folder": folders["fast"]}, TOKEN).status_code == 200
    assert answered(server, by_policy("fast")) == expected["fast"]
    listed = httpx.get(f"{server.url}/banpick/policy", headers={"Authorization": f"Bearer {TOKEN}"}).json()["policies"]
    assert [each["label"] for each in listed] == ["fixed_k k=2", "pick boost=4 key_experts=8", "stock"]

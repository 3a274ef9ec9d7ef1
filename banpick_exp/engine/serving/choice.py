"""Which policy answers a request, and the salt that keeps its keys and values apart from every other policy's.

A request names its policy in `vllm_xargs: {"routing_policy": "fast"}` or by the model name, `MODEL:fast`.
vLLM's prefix cache knows nothing of policies: a block is found by its tokens and the request's `cache_salt`, so the
server puts the policy before what salt the client gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from banpick_exp.config import suggestion
from banpick_exp.engine.serving.served import Served

POLICY = "routing_policy"
"""What a request calls its policy in `vllm_xargs`."""
ROW = "routing_row"
"""How the server tells its workers; the workers' name for it is `plugin.token_rows.ROW`."""


class WrongPolicy(ValueError):
    """What a client asked for cannot be; the message is for the client."""


class Policies:
    """The policies that a server holds now, by table row; row 0 answers requests that name none."""

    def __init__(self, served: Sequence[Served]) -> None:
        self.served = list(served)
        self.swaps = [0] * len(self.served)
        """How often each row was given another policy."""

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.served]

    def row(self, name: object) -> int:
        """The row of a policy by its name. Raises WrongPolicy, with the names there are, for another."""
        if isinstance(name, str) and name in self.names:
            return self.names.index(name)
        near = suggestion(name, self.names) if isinstance(name, str) else ""
        raise WrongPolicy(f"{POLICY}={name!r} is no policy of this server. {near}It has {', '.join(self.names)}.")

    def salt(self, row: int, of_client: str | None) -> str:
        """`FINGERPRINT.SWAPS`, then what the client gave: no two policies, and no two clients, share a key.

        The swaps count because a request that waited through a swap still carries the former salt.
        """
        own = f"{self.served[row].fingerprint}.{self.swaps[row]}"
        return own if of_client is None else f"{own}/{of_client}"

    def replace(self, row: int, served: Served) -> None:
        """Another policy in this row, under the same name."""
        self.served[row] = served
        self.swaps[row] += 1

    # ------------------------------------------------------------ of a request

    def asked(self, extra: Mapping[str, Any] | None) -> int:
        """The row of a request by its `extra_args`. Raises WrongPolicy for an unknown name or a row it chose itself."""
        extra = extra or {}
        if POLICY in extra:
            return self.row(extra[POLICY])
        if ROW in extra:
            raise WrongPolicy(f"{ROW} is this server's own. Name a policy: {POLICY}, one of {', '.join(self.names)}.")
        return 0

    def of_model_name(self, name: str | None, known: Sequence[str]) -> str | None:
        """The policy of `MODEL:POLICY` where MODEL is one of `known`; None of any other name."""
        for model in known:
            if name is not None and name.startswith(f"{model}:") and name[len(model) + 1 :] in self.names:
                return name[len(model) + 1 :]
        return None

    def named_in(self, model: str | None, known: Sequence[str], extra: Mapping[str, Any] | None) -> str | None:
        """The policy that a request names, in either way; None where it names none. Raises WrongPolicy where both are
        there and differ, and as `asked` does."""
        by_model = self.of_model_name(model, known)
        by_extra = self.names[self.asked(extra)] if extra and (POLICY in extra or ROW in extra) else None
        if by_model is not None and by_extra is not None and by_model != by_extra:
            raise WrongPolicy(
                f"the model is {model} and {POLICY}={by_extra!r}: two policies for one request. Name one."
            )
        return by_model or by_extra

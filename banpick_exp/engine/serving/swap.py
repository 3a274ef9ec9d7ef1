"""Another policy under a name of a running server, so that no request is answered by two and no KV crosses.

In this order: load and check the folder, with requests running; hold new requests back and let what runs end; empty the
prefix cache; write the row on every rank; change the salt of the name; go on. A request that arrived meanwhile waited
with the former salt: it finds an empty cache, and nobody finds what it writes, since the salt counts swaps.
"""

from __future__ import annotations

import asyncio
from typing import Any

from banpick_exp.engine.engine import EngineError
from banpick_exp.engine.serving.figures import Figures
from banpick_exp.engine.serving.held import held
from banpick_exp.engine.serving.served import STOCK, Served, check_slots, checkpoint_served, served_folder
from banpick_exp.engine.serving.starting import check_agreement
from banpick_exp.errors import UserError


class NotSwapped(Exception):
    """Nothing was changed; the message says why."""


class Swap:
    """Of one server; one swap at a time."""

    def __init__(self, engine: Any, figures: Figures) -> None:
        self._engine, self._figures, self._one = engine, figures, asyncio.Lock()

    async def replace(self, name: str, folder: str) -> tuple[Served, Served]:
        """The former and the new policy of `name`. Raises NotSwapped, with the reason."""
        policies = held().policies
        if name not in policies.names or name == STOCK:
            known = ", ".join(each for each in policies.names if each != STOCK)
            raise NotSwapped(f"{name!r} is no name that can be given another policy. There are {known}.")
        if self._engine.vllm_config.kv_transfer_config is not None:
            raise NotSwapped("KV that is kept outside the engine would outlive the policy. Start the server again.")
        async with self._one:
            row, former = policies.names.index(name), policies.served[policies.names.index(name)]
            try:
                served = await asyncio.to_thread(self._checked, name, folder)
            except UserError as error:
                raise NotSwapped(str(error)) from None
            wires = [(served if at == row else each).wire() for at, each in enumerate(policies.served)]
            agreed = True
            await self._engine.pause_generation(mode="wait", clear_cache=True)
            try:
                if (calibration := served.calibration_wire()) is not None:
                    await self._engine.collective_rpc("banpick_load_calibration", args=calibration)
                await self._engine.collective_rpc("banpick_forget_row", args=(row,))
                answers = await self._engine.collective_rpc("banpick_set_policies", args=(wires,))
                agreed = False
                check_agreement(self._figures.stages, [digests for digests, _ in answers])
                agreed = True
                policies.replace(row, served)
            except EngineError:
                raise
            except Exception as error:
                raise NotSwapped(f"the workers cannot hold it: {error}") from None
            finally:
                if agreed:  # else no answer could be trusted: none is given until the server is started again
                    await self._engine.resume_generation()
        return former, served

    def _checked(self, name: str, folder: str) -> Served:
        served = served_folder(name, folder)
        assert served.exported is not None
        checkpoint = checkpoint_served(served, held().model, held().revision)
        served.exported.check(checkpoint)
        check_slots(served, held().slots, checkpoint.shape.top_k)
        served.exported.build(served.domain)
        return served

"""What of the environment W&B may see: how to reach it and where to put its files, never what a run is.

Variables such as WANDB_RUN_ID, WANDB_RESUME or WANDB_RUN_GROUP describe one run of whoever set them (an agent, a
launcher, a notebook). A sweep opens a run a point, so they would give all of its points one identity.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "WANDB_"
KEPT = frozenset(
    {
        # Who we are, and where the server is.
        "WANDB_API_KEY",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_CREDENTIALS_FILE",
        "WANDB_BASE_URL",
        "WANDB_APP_URL",
        "WANDB_ENTITY",
        "WANDB_ORGANIZATION",
        # How to reach it.
        "WANDB_HTTP_PROXY",
        "WANDB_HTTPS_PROXY",
        "WANDB_X_PROXIES",
        "WANDB__PROXIES",
        "WANDB_X_EXTRA_HTTP_HEADERS",
        "WANDB__EXTRA_HTTP_HEADERS",
        "WANDB_HTTP_TIMEOUT",
        "WANDB_FILE_PUSHER_TIMEOUT",
        "WANDB_INSECURE_DISABLE_SSL",
        "WANDB_ERROR_REPORTING",
        # Where its files go that are no run's.
        "WANDB_CONFIG_DIR",
        "WANDB_CACHE_DIR",
        "WANDB_DATA_DIR",
        "WANDB_ARTIFACT_DIR",
    }
)
"""All that W&B is shown of its variables: those it will have tomorrow describe runs as well, as likely as not."""


def of_no_run(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy without the variables of W&B outside `KEPT`: what a process that calls W&B may see."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIX) or name in KEPT}

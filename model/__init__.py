"""A checkpoint: its prompts and films, loading and merging, its size in memory, greedy reports by either engine."""

import common  # noqa: F401  (nothing is sent anywhere: common/telemetry.env)

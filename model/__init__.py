"""A checkpoint: its prompts and films, loading and merging, its size in memory, greedy reports by either engine."""

import foundation  # noqa: F401  (nothing is sent anywhere: foundation/telemetry.env)

"""Candidate and reference reports in, numbers out. Nothing here knows of training, but `grpo_reward.py`."""

import foundation  # noqa: F401  (nothing is sent anywhere: foundation/telemetry.env)

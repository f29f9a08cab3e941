"""Candidate and reference reports in, numbers out. Nothing here knows of training, but `grpo_reward.py`."""

import common  # noqa: F401  (nothing is sent anywhere: common/telemetry.env)

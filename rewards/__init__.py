"""Candidate and reference reports in, numbers out. Nothing here knows of training, but `grpo_reward.py`."""

import data_prep  # noqa: F401  (nothing is sent anywhere: data_prep/telemetry.env)

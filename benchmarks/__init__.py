"""Benchmarks: one file each, run as `python -m benchmarks.NAME`; results and what they mean are in README.md."""

import common  # noqa: F401  (nothing is sent anywhere: common/telemetry.env)

"""Benchmarks: one file each, run as `python -m benchmarks.NAME`; results and what they mean are in README.md."""

import foundation  # noqa: F401  (nothing is sent anywhere: foundation/telemetry.env)

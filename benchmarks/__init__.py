"""Benchmarks: one file each, run as `python -m benchmarks.NAME`; results and what they mean are in README.md."""

import data_prep  # noqa: F401  (nothing is sent anywhere: data_prep/telemetry.env)

"""From each source as it lies on disk to one study table (see `study.py` for its schema)."""

import foundation  # noqa: F401  (nothing is sent anywhere: foundation/telemetry.env)

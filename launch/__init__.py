"""Where the recipes run: this machine, its GPUs, a cluster."""

import foundation  # noqa: F401  (nothing is sent anywhere: foundation/telemetry.env)

"""Where the recipes run: this machine, its GPUs, a cluster."""

import common  # noqa: F401  (nothing is sent anywhere: common/telemetry.env)

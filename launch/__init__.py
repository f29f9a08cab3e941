"""Where the recipes run: this machine, its GPUs, a cluster."""

import data_prep  # noqa: F401  (nothing is sent anywhere: data_prep/telemetry.env)

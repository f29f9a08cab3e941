import common  # noqa: F401  (nothing is sent anywhere: common/telemetry.env)

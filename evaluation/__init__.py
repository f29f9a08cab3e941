import foundation  # noqa: F401  (nothing is sent anywhere: foundation/telemetry.env)

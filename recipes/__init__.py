import data_prep  # noqa: F401  (nothing is sent anywhere: data_prep/telemetry.env)

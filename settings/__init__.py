"""Every YAML key: the dataclass that holds it, what TRL's keys mean here, the values that cannot be, the reader of recipes."""

import foundation  # noqa: F401  (nothing is sent anywhere: foundation/telemetry.env)

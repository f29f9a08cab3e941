"""The life of a training stage: data rows, TRL's trainers with shared prompts, rollouts, monitors, checkpoints, results."""

import foundation  # noqa: F401  (nothing is sent anywhere: foundation/telemetry.env)

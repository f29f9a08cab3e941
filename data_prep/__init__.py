"""From each source as it lies on disk to one study table (see `study.py` for its schema)."""

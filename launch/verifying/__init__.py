"""What `make verify` checks: one file a kind of check, each a generator of lines (`line.py`)."""

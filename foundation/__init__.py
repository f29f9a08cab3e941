"""What several floors need, each once: atomic files, locks, one-line errors, masks, signals, the rule for hosts, provenance."""

import os
from pathlib import Path

from foundation.governance import keep_off_proxies
from foundation.signals import tell_interrupts

tell_interrupts()

# Here, because every other package imports this one first: libraries read these variables when they are imported.
for _line in Path(__file__).with_name("telemetry.env").read_text(encoding="utf-8").splitlines():
    if _line and not _line.startswith("#"):
        os.environ.setdefault(*_line.split("=", 1))

keep_off_proxies()  # no client, of whatever library, asks a proxy for this machine's own servers

"""Where the recipes run: this machine, its GPUs, a cluster."""

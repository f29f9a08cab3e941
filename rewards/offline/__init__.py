"""Rule-based stand-ins for machines without weights. Their numbers are never those of the metric they stand in for, and
every name says so: `sembscore[offline-rules]`, `bertscore[offline-hash]`, `radgraph[offline-rules]`."""

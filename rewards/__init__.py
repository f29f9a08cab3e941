"""Candidate and reference reports in, numbers out. Nothing here knows of training, but `grpo_reward.py`."""

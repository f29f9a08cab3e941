"""CheXprompt as a reward: an LLM judge counts six types of error in a candidate report."""

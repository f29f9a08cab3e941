"""One file for each kind of question that `make doctor` asks."""

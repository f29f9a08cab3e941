"""What a recipe will cost: its stages' work, memory, time, disk and judge, before anything is downloaded."""

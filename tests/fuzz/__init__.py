"""Fuzzing: valid files that the encoder would not write, damaged ones, and damaged checkpoints of other formats."""

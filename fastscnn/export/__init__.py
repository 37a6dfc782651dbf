"""Files that run elsewhere, and the proof that they compute what the model computes."""

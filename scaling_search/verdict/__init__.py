"""What the runs say: the joint model, what follows from it, and its one narration."""

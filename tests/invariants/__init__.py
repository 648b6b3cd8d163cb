"""What must hold of a history, whoever made it: a simulation, or real processes that are killed."""

"""JointDiff at the coordinator: the Flower server, its rounds and its aggregation."""

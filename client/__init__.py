"""JointDiff inside a hospital: the Flower client and what a site keeps to itself."""

"""Random generators and the order of the data: the basis of exact resuming."""

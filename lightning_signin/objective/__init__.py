"""The user's loss and data, and the network that they run: the input of scores and metrics."""

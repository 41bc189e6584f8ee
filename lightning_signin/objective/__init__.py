"""The user's loss and data, and the network that they run: what scores and metrics look at."""

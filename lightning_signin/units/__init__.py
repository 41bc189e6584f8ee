"""The units of a model and how they are connected: read from its real forward, walked over, and checked for cuts."""

"""The units of a model and their connections: read from its real forward, walked along, and checked for cuts."""

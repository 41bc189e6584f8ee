"""Ready-made runs: YAML files, and the data modules and models that they use."""

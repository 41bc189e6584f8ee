"""Ready-made runs: YAML files, and the data modules and models that only they use."""

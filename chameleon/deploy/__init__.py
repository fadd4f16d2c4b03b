"""Old names, kept for one release: `chameleon.deploy.measure` and `chameleon.deploy.memory_pass`."""

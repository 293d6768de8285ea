"""Real neighbours for tests: servers, directories, clients, all on this machine and ended by their own pid."""

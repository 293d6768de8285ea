"""Everything around the daemon: the laboratory, the demonstration grid, guest images and the appliance image."""

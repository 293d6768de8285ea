"""Private libvirt daemons, so that one machine can play several servers."""

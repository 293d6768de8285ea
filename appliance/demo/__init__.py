"""A whole grid on one machine: three daemons with their own data, ports and libvirt, joined as real servers are."""

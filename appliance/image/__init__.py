"""Disk images from Debian packages, built offline: no loop device, no mount, no KVM."""

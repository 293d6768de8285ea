"""kmgr: virtual desktops from two or more ordinary KVM servers."""

__version__ = "0.1.0"

"""Desktops on this server: linked clones, their domains, and the loop that keeps them as wanted."""

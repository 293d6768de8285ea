"""The commands that an administrator types on a server."""

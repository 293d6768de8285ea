"""Golden images on every server's own disks: cut into blocks, verified, copied from server to server."""

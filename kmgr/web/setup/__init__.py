"""The wizard of a server that has no grid yet."""

"""The composition root: the one place that knows all parts and puts them together into a running server."""

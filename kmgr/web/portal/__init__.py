"""The portal: log in, open a desktop, work on it."""

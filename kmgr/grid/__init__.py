"""One truth on every server: the replicated log, its state machine, and the wires between servers."""

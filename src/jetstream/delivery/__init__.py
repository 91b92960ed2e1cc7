"""From the log to the subscribers: the wires, and who is where in the log."""

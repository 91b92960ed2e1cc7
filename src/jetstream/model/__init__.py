"""Values: an event, a batch of them, a filter, and the syntax of identifiers. Pure."""

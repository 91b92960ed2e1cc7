"""Values that the whole server shares: event, batch, filter, and the syntax of identifiers. Pure.

Nothing here knows where events come from or go to.
"""

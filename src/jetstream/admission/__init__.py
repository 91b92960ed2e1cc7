"""What stands between the upstreams and the log: which messages are what the owner signed, each once.

Nothing here is used by a server of one upstream that checks no signatures.
"""

"""Examine messages, each by itself: in the server's process, or in a pool of processes.

pool ─────────▶ worker ───socket───▶ worker_main ──▶ examination
divides         starts a process     the process     one message to its finding
and replaces it
in_flight: what it was sent and has not answered
"""

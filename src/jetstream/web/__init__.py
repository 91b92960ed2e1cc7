"""The HTTP side: `/subscribe`, `/v1/subscribe`, `/metrics`, `/health` and `/`."""

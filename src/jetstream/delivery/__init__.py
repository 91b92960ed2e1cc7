"""Delivery: from the log to the bytes that each subscriber receives.

Read `delivery.delivery` first; then `subscriber`, `lanes` and `index` for who is where, `publisher` and
`pacer` for the tip, `catch_up` and `chunks` for readers behind, and `renderers`, `framing` and `render_cache`
for the bytes.
"""

"""Verify what an upstream sends: each commit and #sync against the signature of the repository's owner.

Pure: a caller brings the message, the repository's state, the keys and the time, and takes a verdict and the
next state. `verifier` joins the steps for a caller that has all of these at hand; one that must wait for a
key calls the steps itself:

    message ─ screen ─▶ replay, future   chain        free: by the rev alone
            ─ examine ─▶ Evidence        commit       hashes, envelope, ops, tree: needs no key
            ─ verify ─▶ signed or not    atproto.keys
            ─ judge ─▶ Verdict, state    chain        what came before it

The most expensive step is the signature. It comes last but one, so that no key is asked for in vain.
"""

"""Jetstream: the ATProto firehose as light, friendly JSON over WebSocket."""

"""The formats of AT Protocol: DAG-CBOR, CAR. Pure."""

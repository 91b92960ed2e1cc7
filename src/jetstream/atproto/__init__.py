"""The formats of AT Protocol: DAG-CBOR and CAR, as they are on the wire. Pure: no I/O, no clock."""

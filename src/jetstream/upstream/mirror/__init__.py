"""Another Jetstream as the only upstream: its events, with their positions if it is one of ours."""
